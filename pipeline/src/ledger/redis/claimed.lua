-- How many claims are held now. KEYS: claims. Those whose worker died stay until somebody claims the product again.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = 0
for _, claim in ipairs(redis.call('HVALS', KEYS[1])) do
    if tonumber(claim:match('^%d+')) > now then held = held + 1 end
end
return held
