-- The tasks of products that were put back are with the broker. KEYS: failures, the bucket of each. ARGV: products.
-- One that has failed again meanwhile has a new line, which stays.
for i, product in ipairs(ARGV) do
    local known = redis.call('HGET', KEYS[1 + i], product)
    if not known or known:sub(1, 1) ~= 'f' then redis.call('HDEL', KEYS[1], product) end
end
return 1
