#!lua flags=allow-oom
-- Who was heard of lately. KEYS: workers. ARGV: within how many ms. Returns name, what it told, how many ms ago, name, ...
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since = now - ARGV[1]
local workers, told = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #workers, 2 do
    local heard, pulse = workers[i + 1]:match('^(%d+) (.*)$')
    if tonumber(heard) >= since then
        table.insert(told, workers[i])
        table.insert(told, pulse)
        table.insert(told, math.max(now - tonumber(heard), 0))
    end
end
return told
