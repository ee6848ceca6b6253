-- Keeps the first answer to a product. KEYS: bucket, claims, answers. ARGV: product, token, outcome.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or known:sub(1, 1) == 'o' then
    redis.call('HSETNX', KEYS[3], ARGV[1], ARGV[3])
end
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held and held:match('^%d+ %a+ (.*)$') == ARGV[2] then
    redis.call('HDEL', KEYS[2], ARGV[1])
end
return 1
