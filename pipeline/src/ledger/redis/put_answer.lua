-- Keeps the first answer to a product. KEYS: bucket, claims, answers, spent, pace. ARGV: product, token, outcome, of how many
-- calls of the product an earlier reply 'late' told ('' where there was none), what this claim's last call has cost.
-- Returns {'kept'}; {'earlier', outcome} where another is kept (a result may replace a failure, when ARGV says that its line
-- tells of that one's calls); {'done'} where the product has its result already; or,
-- where the claim is no longer held and there were other calls than those, {'late', calls begun by those whose claims ran
-- out and by who has the product now, what was spent when it was last given back}, and keeps nothing.
local known = redis.call('HGET', KEYS[1], ARGV[1])
local state = known and known:sub(1, 1) or 'o'
local is_open = state == 'o' or state == 'r'
local held = redis.call('HGET', KEYS[2], ARGV[1])
local calls, begun, hold, token
if held then calls, begun, hold, token = held:match('^%d+ %d+ (%d+) (%d+) (%d+) (.*)$') end
local reply = {'kept'}
-- First what a full Redis refuses, so that it refuses the whole.
if is_open then
    local answer = redis.call('HGET', KEYS[3], ARGV[1])
    local is_failure = function(outcome) return outcome:match('^{"v":%d+,"m":{"failed":') end
    local replaces = false
    if answer and is_failure(answer) and not is_failure(ARGV[3]) then
        local meta = cjson.decode(answer).m.failed.meta
        replaces = tonumber(ARGV[4]) == meta.attempts + (meta.repeated_calls or 0)
    end
    if answer and answer ~= ARGV[3] and not replaces then
        reply = {'earlier', answer}
    elseif answer ~= ARGV[3] then
        if not answer and token ~= ARGV[2] then
            local spent = redis.call('HGET', KEYS[4], ARGV[1]) or ''
            local since = (calls or 0) + (begun or 0)
            local before = spent == '' and {calls = 0, repeated_calls = 0} or cjson.decode(spent)
            -- Others go on meanwhile: a call that was begun after the last reply would be told by no line.
            if tonumber(ARGV[4]) ~= before.calls + before.repeated_calls + since then
                return {'late', tostring(since), spent}
            end
        end
        redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
    end
elseif state == 'c' then
    -- A result may follow a failure that is on disk: that one is told.
    reply = {'done'}
end
-- A late one ends the other's claim, too: no call is begun for a product that is answered.
if token == ARGV[2] or (token and ARGV[4] ~= '') then
    redis.call('HDEL', KEYS[2], ARGV[1])
    if hold ~= '0' then
        redis.call('HINCRBY', KEYS[5], 'held', '-' .. string.format('%d', hold))
        -- Of the other's call nobody will tell the cost.
        redis.call('HINCRBY', KEYS[5], 'spent', token == ARGV[2] and ARGV[5] or hold)
    end
end
return reply
