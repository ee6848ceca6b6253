-- A provider has refused a call for its rate: nobody begins one there for a while (see pace.rs). KEYS: pace. ARGV: lane, the
-- pause in ms, calls made without a place.
local LEAST_INTERVAL = 1000
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local lane = 'lane:' .. ARGV[1] .. ':'
local known = redis.call('HMGET', KEYS[1], lane .. 'paused', lane .. 'calls', lane .. 'learned', lane .. 'since')
local paused, calls, learned = tonumber(known[1] or '0'), tonumber(known[2] or '0'), tonumber(known[3] or '')
local function text(value) return string.format('%.6f', value) end
if not learned or now >= paused then
    learned = calls
    local since = tonumber(known[4] or '0')
    local counted = since > 0 and now - since or 0
    redis.call('HSET', KEYS[1], lane .. 'over', text(math.max(counted, LEAST_INTERVAL)))
    redis.call('HSET', KEYS[1], lane .. 'since', text(now), lane .. 'calls', '0')
end
redis.call('HSET', KEYS[1], lane .. 'learned', text(learned + ARGV[3] - 1))
redis.call('HSET', KEYS[1], lane .. 'paused', text(math.max(paused, now + ARGV[2])))
return 1
