-- Asks for products. KEYS: claims, answers, spent, pace, the bucket of each. ARGV: lease in ms, then product and token of each.
-- Returns for each {'done'}, {'answered', outcome}, {'busy'}, or {'granted', claims that ran out in a call, calls begun under
-- them, what was spent when it was last given back, how it is asked otherwise ('' unless it was put back)}.
-- A claim is stored as "<until ms> <claims lost> <calls lost> <calls begun> <billionths of a dollar held> <token>", so
-- that asking twice gives the same reply. What a claim that ran out had held counts as spent: nobody knows better.
local claims, answers, spent, pace = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function claim(bucket, product, asker)
    local known = redis.call('HGET', bucket, product)
    if known and known:match('^[cf]') then return {'done'} end
    local answer = redis.call('HGET', answers, product)
    if answer then return {'answered', answer} end
    local held = redis.call('HGET', claims, product)
    local lost_claims, lost_calls, begun, hold = 0, 0, 0, 0
    if held then
        local until_ms, lost, calls, of_this, held_nanos, token = held:match('^(%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
        lost_claims, lost_calls, begun, hold = tonumber(lost), tonumber(calls), tonumber(of_this), tonumber(held_nanos)
        if token ~= asker then
            if tonumber(until_ms) > now then return {'busy'} end
            -- One under which no call was begun was waiting, and is no evidence against the product.
            if begun > 0 then lost_claims = lost_claims + 1 end
            if hold > 0 then
                redis.call('HINCRBY', pace, 'held', '-' .. string.format('%d', hold))
                redis.call('HINCRBY', pace, 'spent', hold)
            end
            lost_calls, begun, hold = lost_calls + begun, 0, 0
        end
    end
    local value = string.format('%d %d %d %d %d %s', now + ARGV[1], lost_claims, lost_calls, begun, hold, asker)
    redis.call('HSET', claims, product, value)
    local changes = ''
    if known and known:sub(1, 1) == 'r' then changes = redis.call('HGET', spent, product .. ':changes') or '{}' end
    local before = redis.call('HGET', spent, product) or ''
    return {'granted', tostring(lost_claims), tostring(lost_calls), before, changes}
end
local replies = {}
for i = 2, #ARGV, 2 do replies[i / 2] = claim(KEYS[4 + i / 2], ARGV[i], ARGV[i + 1]) end
return replies
