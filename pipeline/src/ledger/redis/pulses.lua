#!lua flags=allow-oom
-- Who was heard of lately. KEYS: workers. ARGV: within how many ms. Returns name, what it told, name, ...
local time = redis.call('TIME')
local since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
local workers, told = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #workers, 2 do
    local heard, pulse = workers[i + 1]:match('^(%d+) (.*)$')
    if tonumber(heard) >= since then
        table.insert(told, workers[i])
        table.insert(told, pulse)
    end
end
return told
