-- Keeps the first answer to a product. KEYS: bucket, claims, answers, spent. ARGV: product, token, outcome, late ('1' or '').
-- Returns {'kept'}; {'earlier', outcome} where another is kept; {'done'} where the product has its result already; or,
-- where the claim is no longer held and `late` is not said, {'late', calls begun by those whose claims ran out and by who
-- has the product now, what was spent when it was last given back}, and keeps nothing.
local known = redis.call('HGET', KEYS[1], ARGV[1])
local state = known and known:sub(1, 1) or 'o'
local is_open = state == 'o' or state == 'r'
local held = redis.call('HGET', KEYS[2], ARGV[1])
local calls, begun, token
if held then calls, begun, token = held:match('^%d+ %d+ (%d+) (%d+) (.*)$') end
local reply = {'kept'}
-- First what a full Redis refuses, so that it refuses the whole.
if is_open then
    local answer = redis.call('HGET', KEYS[3], ARGV[1])
    -- A result that was paid for is worth more than a failure that nobody may have seen yet.
    local is_failure = function(outcome) return outcome:match('^{"v":%d+,"m":{"failed":') end
    if answer and is_failure(answer) and not is_failure(ARGV[3]) then answer = false end
    if answer and answer ~= ARGV[3] then
        reply = {'earlier', answer}
    elseif not answer and token ~= ARGV[2] and ARGV[4] == '' then
        local spent = redis.call('HGET', KEYS[4], ARGV[1]) or ''
        return {'late', tostring((calls or 0) + (begun or 0)), spent}
    elseif not answer then
        redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
    end
elseif state == 'c' then
    -- A result may follow a failure that is on disk: that one is told.
    reply = {'done'}
end
-- A late one ends the other's claim, too: no call is begun for a product that is answered.
if token == ARGV[2] or (token and ARGV[4] == '1') then redis.call('HDEL', KEYS[2], ARGV[1]) end
return reply
