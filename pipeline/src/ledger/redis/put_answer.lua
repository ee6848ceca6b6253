-- Keeps the first answer to each product. KEYS: claims, answers, spent, pace, the bucket of each. ARGV, of each: product, token,
-- outcome, of how many calls of the product an earlier reply 'late' told ('' where there was none), what this claim's last call
-- has cost.
-- Returns for each {'kept'}; {'earlier', outcome} where another is kept (a result may replace a failure, when ARGV says that its
-- line tells of that one's calls); {'done'} where the product has its result already; or,
-- where the claim is no longer held and there were other calls than those, {'late', calls begun by those whose claims ran
-- out and by who has the product now, what was spent when it was last given back}, and keeps nothing.
local spent, products = KEYS[3], {}
for i = 1, #ARGV, 5 do products[#products + 1] = ARGV[i] end
local claims, answers = read_fields(KEYS[1], products), read_fields(KEYS[2], products)
local put_now, ended = {}, {}
local function is_failure(outcome) return outcome:match('^{"v":%d+,"m":{"failed":') end
local function put(bucket, product, asker, outcome, told, cost)
    local held = claims[product]
    local calls, begun, hold, token
    if held then calls, begun, hold, token = held:match('^%d+ %d+ (%d+) (%d+) (%d+) (.*)$') end
    -- Only what is open has a claim.
    local state = 'o'
    if token ~= asker then
        local known = redis.call('HGET', bucket, product)
        state = known and known:sub(1, 1) or 'o'
    end
    local is_open = state == 'o' or state == 'r'
    local reply = {'kept'}
    if is_open then
        local answer = answers[product]
        local replaces = false
        if answer and is_failure(answer) and not is_failure(outcome) then
            local meta = cjson.decode(answer).m.failed.meta
            replaces = tonumber(told) == meta.attempts + (meta.repeated_calls or 0)
        end
        if answer and answer ~= outcome and not replaces then
            reply = {'earlier', answer}
        elseif answer ~= outcome then
            if not answer and token ~= asker then
                local spent_before = redis.call('HGET', spent, product) or ''
                local since = (calls or 0) + (begun or 0)
                local before = spent_before == '' and {calls = 0, repeated_calls = 0} or cjson.decode(spent_before)
                -- Others go on meanwhile: a call that was begun after the last reply would be told by no line.
                if tonumber(told) ~= before.calls + before.repeated_calls + since then
                    return {'late', tostring(since), spent_before}
                end
            end
            answers[product], put_now[product] = outcome, outcome
        end
    elseif state == 'c' then
        -- A result may follow a failure that is on disk: that one is told.
        reply = {'done'}
    end
    -- A late one ends the other's claim, too: no call is begun for a product that is answered.
    if token == asker or (token and told ~= '') then
        claims[product], ended[product] = nil, false
        if hold ~= '0' then
            -- Of the other's call nobody will tell the cost.
            settle(hold, token == asker and cost or hold)
        end
    end
    return reply
end
local replies = {}
for i = 1, #ARGV, 5 do
    local bucket = KEYS[5 + (i - 1) / 5]
    replies[#replies + 1] = put(bucket, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
-- First what a full Redis refuses, so that it refuses the whole.
write_fields(KEYS[2], put_now)
write_fields(KEYS[1], ended)
write_money(KEYS[4])
return replies
