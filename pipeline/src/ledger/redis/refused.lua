-- A provider has refused a call for its rate: nobody begins one there for a while (see pace.rs). KEYS: pace. ARGV: lane, the
-- pause in ms, calls made without a place, how many ms ago the refused call was begun.
local LEAST_INTERVAL, AT_LEAST, MOST_GROWTH, CLOSE_CALLS, BACK_TO, LEAST_RATE = 1000, 0.8, 4, 4, 0.95, 0.0001
local GROWTH, CALLS_PER_SECOND, FORGOTTEN = 0.005, 4, 60
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local lane, made = 'lane:' .. ARGV[1] .. ':', tonumber(ARGV[3])
local function fact(name) return tonumber(redis.call('HGET', KEYS[1], lane .. name) or '') end
local function store(name, value) redis.call('HSET', KEYS[1], lane .. name, string.format('%.9f', value)) end
local paused, calls, since, rate = fact('paused') or 0, fact('calls') or 0, fact('since') or 0, fact('rate')
local apart = fact('since_refusal')
local event, over, floor, teaches = fact('event'), fact('over'), fact('floor'), fact('teaches') == 1
local until_ms = math.max(paused, now + ARGV[2])
store('paused', until_ms)
if paused <= now and now - ARGV[4] < paused then
    store('calls', calls + made)
    if apart then store('since_refusal', apart + made) end
    return 1
end
local began = false
if event and now < paused then
    began, teaches = not teaches, true
else
    event, floor = calls, 0
    over = math.max(since > 0 and now - since or 0, LEAST_INTERVAL)
    if rate then
        local seconds = math.max(math.min((now - (fact('from') or 0)) / 1000, calls / CALLS_PER_SECOND), 0)
        if seconds <= FORGOTTEN then floor = rate * math.min(math.exp(GROWTH * seconds * seconds), MOST_GROWTH) * AT_LEAST end
    end
    teaches = apart ~= nil and apart + made <= CLOSE_CALLS
    began = teaches
end
if began then
    store('since', now)
    store('calls', 0)
end
event = event + made - 1
store('event', event)
store('over', over)
store('floor', floor)
store('teaches', teaches and 1 or 0)
store('since_refusal', 0)
if teaches and event >= 1 then
    store('rate', math.max(BACK_TO * event / over, floor, LEAST_RATE))
    store('from', until_ms)
end
return 1
