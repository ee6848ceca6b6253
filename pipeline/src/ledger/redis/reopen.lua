-- Puts failed products back. KEYS: run, claims, answers, failures, pace, spent, the bucket of each. ARGV: how they are
-- asked otherwise than the job says ('': as it says), then product and what was spent on it ('': nothing) of each.
-- Their lines stay in `failures` until their tasks are with the broker: a crash in between is made good by
-- doing it again, and what was asked for last counts. Whichever task a product is claimed by (there may be one from a
-- producer, which knows nothing), it is asked as it says here, and its line tells what was spent. Returns how many were failed.
local run, claims, answers, failures, pace, spent = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local scan = redis.call('HGET', run, 'scan')
local reopened = 0
for i = 2, #ARGV, 2 do
    local product, bucket = ARGV[i], KEYS[6 + i / 2]
    local known = redis.call('HGET', bucket, product)
    local state = known and known:sub(1, 1)
    if state == 'f' then
        redis.call('HSET', bucket, product, 'r' .. known:sub(2))
        redis.call('HINCRBY', run, 'failed', -1)
        if known:sub(2) == scan then redis.call('HINCRBY', run, 'scan_failed', -1) end
        local was = redis.call('HGET', failures, product)
        if was then redis.call('HINCRBY', run, 'class_' .. was:match('^%S+'), -1) end
        local claim = redis.call('HGET', claims, product)
        local hold = claim and claim:match('^%d+ %d+ %d+ %d+ (%d+)') or 0
        settle(hold, hold)
        redis.call('HDEL', claims, product)
        redis.call('HDEL', answers, product)
        if ARGV[i + 1] ~= '' then redis.call('HSET', spent, product, ARGV[i + 1]) end
        reopened = reopened + 1
    end
    if (state == 'f' or state == 'r') and ARGV[1] ~= '' then
        redis.call('HSET', spent, product .. ':changes', ARGV[1])
    elseif state == 'f' or state == 'r' then
        redis.call('HDEL', spent, product .. ':changes')
    end
end
write_money(pace)
return reopened
