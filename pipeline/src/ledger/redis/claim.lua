-- Asks for products. KEYS: claims, answers, spent, pace, the bucket of each. ARGV: lease in ms, then product and token of each.
-- Returns for each {'done'}, {'answered', outcome}, {'busy'}, or {'granted', claims that ran out in a call, calls begun under
-- them, what was spent when it was last given back, how it is asked otherwise ('' unless it was put back)}.
-- A claim is stored as "<until ms> <claims lost> <calls lost> <calls begun> <billionths of a dollar held> <token>", so
-- that asking twice gives the same reply. What a claim that ran out had held counts as spent: nobody knows better.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local products = {}
for i = 2, #ARGV, 2 do products[i / 2] = ARGV[i] end
local claims, answers = read_fields(KEYS[1], products), read_fields(KEYS[2], products)
local spent = read_fields(KEYS[3], products)
local granted = {}
local function claim(bucket, product, asker)
    local known = redis.call('HGET', bucket, product)
    if known and known:match('^[cf]') then return {'done'} end
    if answers[product] then return {'answered', answers[product]} end
    local held = claims[product]
    local lost_claims, lost_calls, begun, hold = 0, 0, 0, 0
    if held then
        local until_ms, lost, calls, of_this, held_nanos, token = held:match('^(%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
        lost_claims, lost_calls, begun, hold = tonumber(lost), tonumber(calls), tonumber(of_this), tonumber(held_nanos)
        if token ~= asker then
            if tonumber(until_ms) > now then return {'busy'} end
            -- One under which no call was begun was waiting, and is no evidence against the product.
            if begun > 0 then lost_claims = lost_claims + 1 end
            settle(hold, hold)
            lost_calls, begun, hold = lost_calls + begun, 0, 0
        end
    end
    local value = string.format('%d %d %d %d %d %s', now + ARGV[1], lost_claims, lost_calls, begun, hold, asker)
    claims[product], granted[product] = value, value
    local changes = ''
    if known and known:sub(1, 1) == 'r' then changes = redis.call('HGET', KEYS[3], product .. ':changes') or '{}' end
    return {'granted', tostring(lost_claims), tostring(lost_calls), spent[product] or '', changes}
end
local replies = {}
for i, product in ipairs(products) do replies[i] = claim(KEYS[4 + i], product, ARGV[2 * i + 1]) end
write_fields(KEYS[1], granted)
write_money(KEYS[4])
return replies
