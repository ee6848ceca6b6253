#!lua flags=allow-oom
-- Keeps claims. KEYS: claims. ARGV: lease in ms, then product and token of each.
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for i = 2, #ARGV, 2 do
    local held = redis.call('HGET', KEYS[1], ARGV[i])
    local counts, token
    if held then counts, token = held:match('^%d+ (%d+ %d+ %d+ %d+) (.*)$') end
    if token == ARGV[i + 1] then
        redis.call('HSET', KEYS[1], ARGV[i], string.format('%d %s %s', until_ms, counts, token))
    end
end
return 1
