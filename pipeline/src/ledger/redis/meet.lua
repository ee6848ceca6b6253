#!lua flags=allow-oom
-- A role that begins tells its version, where it can work with all that are there: one that is refused leaves nothing behind
-- that others would be refused for. KEYS: roles, workers. ARGV: role, its version, its newest and its oldest messages, within how
-- many ms workers were heard of. Returns 1, or 0 where it cannot. (An aggregator frees memory, so it begins on a full Redis, too.)
local wire, reads_from = tonumber(ARGV[3]), tonumber(ARGV[4])
local function fits(version)
    -- Who tells of none is of a build that knew of none.
    return type(version) ~= 'table' or (wire >= version.reads_from and version.wire >= reads_from)
end
local roles = redis.call('HGETALL', KEYS[1])
for i = 1, #roles, 2 do
    if roles[i] ~= ARGV[1] and not fits(cjson.decode(roles[i + 1])) then return 0 end
end
local time = redis.call('TIME')
local since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[5]
local workers = redis.call('HVALS', KEYS[2])
for _, told in ipairs(workers) do
    local heard, pulse = told:match('^(%d+) (.*)$')
    if tonumber(heard) >= since and not fits(cjson.decode(pulse).build) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
