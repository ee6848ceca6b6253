-- Where products stand, and up to where the ledger was told. KEYS: run, the bucket of each. ARGV: products.
-- Returns the journal mark (or '') and one letter for each product. A script and not a transaction: a client that
-- panics over a refused MULTI (redis-rs 1.8.1, built with overflow checks) does not over this.
local letters = {}
for i, product in ipairs(ARGV) do
    local known = redis.call('HGET', KEYS[1 + i], product)
    letters[i] = known and known:sub(1, 1) or 'o'
end
return {redis.call('HGET', KEYS[1], 'journal') or '', table.concat(letters)}
