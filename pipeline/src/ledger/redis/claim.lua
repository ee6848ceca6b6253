-- Asks for a product. KEYS: bucket, claims, answers, spent, pace. ARGV: product, token, lease in ms.
-- Returns {'done'}, {'answered', outcome}, {'busy'}, or {'granted', claims that ran out in a call, calls begun under them, what
-- was spent when it was last given back, how it is asked otherwise ('' unless it was put back)}.
-- A claim is stored as "<until ms> <claims lost> <calls lost> <calls begun> <billionths of a dollar held> <token>", so
-- that asking twice gives the same reply. What a claim that ran out had held counts as spent: nobody knows better.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and known:match('^[cf]') then return {'done'} end
local answer = redis.call('HGET', KEYS[3], ARGV[1])
if answer then return {'answered', answer} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGET', KEYS[2], ARGV[1])
local lost_claims, lost_calls, begun, hold = 0, 0, 0, 0
if held then
    local until_ms, claims, calls, of_this, held_nanos, token = held:match('^(%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
    lost_claims, lost_calls, begun, hold = tonumber(claims), tonumber(calls), tonumber(of_this), tonumber(held_nanos)
    if token ~= ARGV[2] then
        if tonumber(until_ms) > now then return {'busy'} end
        -- One under which no call was begun was waiting, and is no evidence against the product.
        if begun > 0 then lost_claims = lost_claims + 1 end
        if hold > 0 then
            redis.call('HINCRBY', KEYS[5], 'held', '-' .. string.format('%d', hold))
            redis.call('HINCRBY', KEYS[5], 'spent', hold)
        end
        lost_calls, begun, hold = lost_calls + begun, 0, 0
    end
end
local claim = string.format('%d %d %d %d %d %s', now + ARGV[3], lost_claims, lost_calls, begun, hold, ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], claim)
local changes = ''
if known and known:sub(1, 1) == 'r' then changes = redis.call('HGET', KEYS[4], ARGV[1] .. ':changes') or '{}' end
local spent = redis.call('HGET', KEYS[4], ARGV[1]) or ''
return {'granted', tostring(lost_claims), tostring(lost_calls), spent, changes}
