-- Takes a place in the fleet's pace (see pace.rs) for a claimed product. KEYS: pace, claims. ARGV: product, token, number
-- of the call under this claim, then cost and burst in ms of each bucket (none: the place is taken already).
-- Returns 0 where the call may begin, which is noted in the claim; else after how many ms to ask again; -1 where the
-- claim is somebody else's or gone.
local held = redis.call('HGET', KEYS[2], ARGV[1])
local head, begun, token
if held then head, begun, token = held:match('^(%d+ %d+ %d+) (%d+) (.*)$') end
if token ~= ARGV[2] then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local paused = tonumber(redis.call('HGET', KEYS[1], 'paused_until_ms') or '0')
local start = math.max(now, paused)
local arrivals = {}
for i = 4, #ARGV, 2 do
    arrivals[i] = tonumber(redis.call('HGET', KEYS[1], 'arrival_' .. i) or '0')
    if tonumber(ARGV[i]) > 0 then start = math.max(start, arrivals[i] - ARGV[i + 1]) end
end
for i = 4, #ARGV, 2 do
    if tonumber(ARGV[i]) > 0 then
        local arrival = math.max(arrivals[i], now, paused) + ARGV[i]
        redis.call('HSET', KEYS[1], 'arrival_' .. i, string.format('%.3f', arrival))
    end
end
local wait = math.ceil(start - now)
if wait == 0 then
    begun = math.max(tonumber(begun), tonumber(ARGV[3]))
    redis.call('HSET', KEYS[2], ARGV[1], string.format('%s %d %s', head, begun, token))
end
return wait
