-- Puts failed products back. KEYS: run, claims, answers, failures, pace, the bucket of each. ARGV: products.
-- Their lines stay in `failures` until their tasks are with the broker: a crash in between is made good by
-- doing it again. Returns how many were failed.
local run, claims, answers, failures, pace = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local scan = redis.call('HGET', run, 'scan')
local reopened = 0
for i, product in ipairs(ARGV) do
    local known = redis.call('HGET', KEYS[5 + i], product)
    if known and known:sub(1, 1) == 'f' then
        redis.call('HSET', KEYS[5 + i], product, 'r' .. known:sub(2))
        redis.call('HINCRBY', run, 'failed', -1)
        if known:sub(2) == scan then redis.call('HINCRBY', run, 'scan_failed', -1) end
        local was = redis.call('HGET', failures, product)
        if was then redis.call('HINCRBY', run, 'class_' .. was:match('^%S+'), -1) end
        local claim = redis.call('HGET', claims, product)
        local hold = claim and claim:match('^%d+ %d+ %d+ %d+ (%d+)') or '0'
        if hold ~= '0' then
            redis.call('HINCRBY', pace, 'held', -hold)
            redis.call('HINCRBY', pace, 'spent', hold)
        end
        redis.call('HDEL', claims, product)
        redis.call('HDEL', answers, product)
        reopened = reopened + 1
    end
end
return reopened
