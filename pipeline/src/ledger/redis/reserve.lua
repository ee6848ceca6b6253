-- Takes a place in the fleet's pace (see pace.rs). KEYS: pace. ARGV: cost and burst in ms of each bucket.
-- Returns after how many ms the call may start.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local paused = tonumber(redis.call('HGET', KEYS[1], 'paused_until_ms') or '0')
local start = math.max(now, paused)
local arrivals = {}
for i = 1, #ARGV, 2 do
    arrivals[i] = tonumber(redis.call('HGET', KEYS[1], 'arrival_' .. i) or '0')
    if tonumber(ARGV[i]) > 0 then start = math.max(start, arrivals[i] - ARGV[i + 1]) end
end
for i = 1, #ARGV, 2 do
    if tonumber(ARGV[i]) > 0 then
        local arrival = math.max(arrivals[i], now, paused) + ARGV[i]
        redis.call('HSET', KEYS[1], 'arrival_' .. i, string.format('%.3f', arrival))
    end
end
return math.ceil(start - now)
