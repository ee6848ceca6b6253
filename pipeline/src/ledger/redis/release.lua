-- Gives a claim up, if it is still held. KEYS: claims, spent. ARGV: product, token, what was spent on the product.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held and held:match('^%d+ %d+ %d+ %d+ (.*)$') == ARGV[2] then
    redis.call('HDEL', KEYS[1], ARGV[1])
    if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
end
return 1
