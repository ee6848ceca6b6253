-- Gives places for calls (see pace.rs, which is the same in Rust). KEYS: pace. ARGV: lane, places wanted, calls made without
-- one, then for each limit: name, ms a call, burst in ms, ms owed.
-- Returns {0} where nothing limits; {-1, us} where to ask again after so long; else {places, us until the first, us between}.
local HORIZON, IDLE, ASK_AGAIN, BACK_TO, LEAST_RATE, GROWTH, CALLS_PER_SECOND, FORGOTTEN = 250, 5000, 2500, 0.95, 0.0001, 0.005, 4, 60
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local lane = 'lane:' .. ARGV[1] .. ':'
local function stored(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local function store(name, value) redis.call('HSET', KEYS[1], name, string.format('%.9f', value)) end
local function fact(name) return tonumber(redis.call('HGET', KEYS[1], lane .. name) or '') end
local paused, asked, calls = fact('paused') or 0, fact('asked') or 0, fact('calls') or 0
local rate = fact('rate')
local function forget()
    rate = nil
    redis.call('HDEL', KEYS[1], lane .. 'rate')
end
local function begun(count)
    calls = calls + count
    store(lane .. 'calls', calls)
    local apart = fact('since_refusal')
    if apart then store(lane .. 'since_refusal', apart + count) end
end

local idle = now - math.max(asked, paused)
if idle > IDLE then
    calls = 0
    store(lane .. 'since', now)
end
if rate and idle > FORGOTTEN * 1000 then forget() end
store(lane .. 'asked', now)
local event = now < paused and fact('event')
if event then
    store(lane .. 'event', event + ARGV[3])
    if fact('teaches') == 1 and event + ARGV[3] >= 1 then
        if not rate then store(lane .. 'from', paused) end
        rate = math.max(BACK_TO * (event + ARGV[3]) / fact('over'), fact('floor'), LEAST_RATE)
        store(lane .. 'rate', rate)
    end
else
    begun(tonumber(ARGV[3]))
end
for i = 4, #ARGV, 4 do
    if tonumber(ARGV[i + 3]) ~= 0 then
        local name = 'bucket:' .. ARGV[i]
        store(name, math.max(stored(name), now - ARGV[i + 2]) + ARGV[i + 3])
    end
end
if now < paused then return {-1, math.ceil(math.max(paused - now, 1) * 1000)} end

local buckets = {}
if rate then
    local seconds = math.max(math.min((now - (fact('from') or 0)) / 1000, calls / CALLS_PER_SECOND), 0)
    if seconds > FORGOTTEN then
        forget()
    else
        local grown = rate * math.exp(GROWTH * seconds * seconds)
        table.insert(buckets, {name = lane .. 'bucket', call = 1 / grown, burst = 0})
    end
end
for i = 4, #ARGV, 4 do
    if tonumber(ARGV[i + 1]) > 0 then
        table.insert(buckets, {name = 'bucket:' .. ARGV[i], call = tonumber(ARGV[i + 1]), burst = tonumber(ARGV[i + 2])})
    end
end
if #buckets == 0 then return {0} end
local first, spacing = 0, 0
for _, bucket in ipairs(buckets) do
    bucket.arrival = math.max(stored(bucket.name), now - bucket.burst)
    first, spacing = math.max(first, bucket.arrival), math.max(spacing, bucket.call)
end
local ahead = first - now - HORIZON
if ahead > 0 then return {-1, math.ceil(math.min(math.max(ahead, 1), ASK_AGAIN) * 1000)} end
local count = math.min(math.max(tonumber(ARGV[2]), 1), math.floor(-ahead / spacing) + 1)
for _, bucket in ipairs(buckets) do store(bucket.name, bucket.arrival + count * bucket.call) end
begun(count)
return {count, math.floor((first - now) * 1000), math.ceil(spacing * 1000)}
