#!lua flags=allow-oom
-- Gives up claims whose calls were cut off in good order. KEYS: claims, pace. ARGV: product and token of each.
-- The calls begun become lost ones, and the claim one that ran out while no call was under way. What was held counts as
-- spent: the provider may have worked for it.
for i = 1, #ARGV, 2 do
    local held = redis.call('HGET', KEYS[1], ARGV[i])
    local claims, calls, begun, hold, token
    if held then claims, calls, begun, hold, token = held:match('^%d+ (%d+) (%d+) (%d+) (%d+) (.*)$') end
    if token == ARGV[i + 1] then
        redis.call('HSET', KEYS[1], ARGV[i], string.format('0 %d %d 0 0 -', claims, calls + begun))
        settle(hold, hold)
    end
end
write_money(KEYS[2])
return 1
