-- Gives a claim up, if it is still held. KEYS: claims. ARGV: product, token.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held and held:match('^%d+ %d+ %d+ %d+ (.*)$') == ARGV[2] then
    redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1
