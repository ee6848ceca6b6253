#!lua flags=allow-oom
-- The lines of these products are on disk. KEYS: run, claims, answers, failures, spent, pace, the bucket of each.
-- ARGV: journal mark before and after, then product, state, class and line of each (class and line empty for c). States are
-- c, f, and a for a failure that may have been told before: it leaves a product alone that was put back since.
-- Returns 1, or 0 (and records nothing) where the mark is another: the ledger was emptied or set back, or somebody
-- else writes. A failure is stored as "<class> <line>".
local run, failures = KEYS[1], KEYS[4]
local mark = redis.call('HGET', run, 'journal') or ''
if mark ~= ARGV[1] and mark ~= ARGV[2] then return 0 end
local scan = redis.call('HGET', run, 'scan')
local products = {}
for i = 3, #ARGV, 4 do products[#products + 1] = ARGV[i] end
local claims = read_fields(KEYS[2], products)
-- Failures as they are now; claims and answers that end; and what was spent, and changed.
local told, ended, known_no_more = {}, {}, {}
local completed, failed, scan_completed, scan_failed = 0, 0, 0, 0
for i = 3, #ARGV, 4 do
    local product, state = ARGV[i], ARGV[i + 1]
    local bucket = KEYS[7 + (i - 3) / 4]
    local known = redis.call('HGET', bucket, product) or 'o0'
    local before, of = known:sub(1, 1), known:sub(2)
    local is_put_back = state == 'a' and before == 'r'
    if state == 'a' then state = 'f' end
    if before ~= 'c' and before ~= state and not is_put_back then
        redis.call('HSET', bucket, product, state .. of)
        local here = of == scan and 1 or 0
        if before == 'f' then
            failed, scan_failed = failed - 1, scan_failed - here
            local was = told[product] or redis.call('HGET', failures, product)
            if was then redis.call('HINCRBY', run, 'class_' .. was:match('^%S+'), -1) end
        end
        told[product] = false
        if state == 'c' then
            completed, scan_completed = completed + 1, scan_completed + here
        else
            failed, scan_failed = failed + 1, scan_failed + here
            redis.call('HINCRBY', run, 'class_' .. ARGV[i + 2], 1)
            told[product] = ARGV[i + 2] .. ' ' .. ARGV[i + 3]
        end
    end
    if not is_put_back then
        local claim = claims[product]
        local hold = claim and claim:match('^%d+ %d+ %d+ %d+ (%d+)') or '0'
        -- Somebody is at it again: what that costs will be told by nobody.
        settle(hold, hold)
        claims[product], ended[product] = nil, false
        known_no_more[product], known_no_more[product .. ':changes'] = false, false
    end
end
write_fields(failures, told)
write_fields(KEYS[2], ended)
write_fields(KEYS[3], ended)
write_fields(KEYS[5], known_no_more)
if completed ~= 0 then redis.call('HINCRBY', run, 'completed', completed) end
if failed ~= 0 then redis.call('HINCRBY', run, 'failed', failed) end
if scan_completed ~= 0 then redis.call('HINCRBY', run, 'scan_completed', scan_completed) end
if scan_failed ~= 0 then redis.call('HINCRBY', run, 'scan_failed', scan_failed) end
redis.call('HSET', run, 'journal', ARGV[2])
write_money(KEYS[6])
return 1
