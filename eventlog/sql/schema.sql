-- refold's schema, whole. Every statement can be run again: `refold migrate` runs it on an empty database,
-- `refold rebuild` after tables were lost.
--
-- The truth is `events`, and `inbox` (what has arrived and is not folded into a stream yet). All other tables
-- are projections of the events, or about processes that live now (`workers`, `waiters`).
--
-- Locks are taken in this order, whoever takes them: workers, workflows, events, positions, inbox, waiters.
-- Within a table: by primary key. One exception: who holds the lock of the workflow that is first of its key (see
-- below) changes those behind it, which nobody else does, in whatever order.

create schema if not exists refold;

create table if not exists refold.meta (
    one               boolean primary key default true check (one),
    schema_version    int not null,
    system_identifier bigint not null,
    era               smallint not null default 1
);

-- What happened. Only ever inserted; deleted by whole streams; never updated.
create table if not exists refold.events (
    workflow_id text collate "C" not null,
    seq         int not null check (seq >= 0),
    type        text collate "C" not null,
    at          timestamptz not null,
    body        bytea not null,
    xid         xid8 not null default pg_current_xact_id(),
    era         smallint not null default 1,
    constraint one_event_per_seq primary key (workflow_id, seq)
);

create or replace function refold.refuse_update() returns trigger language plpgsql as $$
begin
    raise exception 'refold.events is append-only: an event is never updated'
        using errcode = 'RF002', hint = 'Append a new event, or delete the whole stream with `refold delete`.';
end $$;

create or replace trigger events_are_never_updated before update on refold.events
    for each statement execute function refold.refuse_update();

-- Messages for a workflow from outside its writer. `body` is the event that folding will append; the flush that
-- appends it deletes the row. `id` is the order of sending; nobody keeps a watermark on it, because a lower id
-- can commit later.
create table if not exists refold.inbox (
    workflow_id text collate "C" not null,
    message_id  text collate "C" not null,
    id          bigint generated always as identity,
    type        text collate "C" not null,
    body        bytea not null,
    constraint one_message_per_id primary key (workflow_id, message_id)
);

-- The heads: one row per workflow that indexes its stream.
create table if not exists refold.workflows (
    workflow_id  text collate "C" primary key,
    name         text collate "C" not null,
    status       text collate "C" not null,
    created_at   timestamptz not null,
    finished_at  timestamptz,
    source       text collate "C",
    parent       text collate "C",
    parent_no    int,
    digest       text collate "C" not null,
    -- From here on: who drives it and when it is due. Not in the log; a rebuild makes every open workflow due at once.
    owner        text collate "C",
    due_at       timestamptz,
    fingerprint  text collate "C",              -- of the code that got stuck on it
    claimed_seq  int not null default 1,        -- how many events it had when it was claimed last; 0: it never was
    suspicion    smallint not null default 0,   -- deaths of its worker since it made progress
    alone_deaths smallint not null default 0,   -- those of them with nothing else in the worker's hands
    alone        boolean not null default false, -- claimed so now
    -- Of an order: workflows of one key run one after the other. At most one of those that are open is the first; all
    -- others are behind it, are never due and never claimed, whatever comes for them. They are `pending`, or `waiting`
    -- once they were parked themselves, or one before them was.
    order_key    text collate "C",
    order_no     bigint,
    behind       boolean not null default false,
    not_before   timestamptz,
    findable     boolean not null default false -- by its digest, among those of its source
) with (fillfactor = 70);

create index if not exists workflows_due on refold.workflows (name, due_at)
    where owner is null and due_at is not null;
create index if not exists workflows_owned on refold.workflows (owner) where owner is not null;
create index if not exists workflows_runnable on refold.workflows (source)
    where source is not null and status in ('pending', 'running');
create index if not exists workflows_by_age on refold.workflows (created_at);
-- No row of an idle key in any of these, and none of a workflow without a key.
create unique index if not exists one_first_per_key on refold.workflows (order_key)
    where order_key is not null and finished_at is null and not behind;
create index if not exists workflows_behind on refold.workflows (order_key, order_no, workflow_id)
    where order_key is not null and behind;
create index if not exists workflows_parked on refold.workflows (order_key, order_no, workflow_id)
    where order_key is not null and status = 'parked';
create index if not exists workflows_alike on refold.workflows (source, digest, created_at) where findable;

-- One row per worker and lane (a writer's sequence of flushes). `epoch` grows when the worker is declared dead:
-- from then on every transaction of it is refused by the fence.
create table if not exists refold.workers (
    worker      text collate "C" not null,
    lane        text collate "C" not null,
    epoch       bigint not null,
    flush_no    bigint not null default 0,
    beat        bigint not null default 0,
    lock_key    bigint,                          -- session advisory lock that is free once the process is gone
    started_at  timestamptz not null default clock_timestamp(),
    dead_at     timestamptz,
    primary key (worker, lane)
);

create table if not exists refold.positions (
    source   text collate "C" primary key,
    stream   text collate "C" not null,
    next_seq int not null,
    position bytea not null,
    label    text collate "C" not null,
    at       timestamptz not null
);

-- Who wants to be told when a workflow ends. A lost row costs a waiter its next slow poll, nothing else.
create table if not exists refold.waiters (
    workflow_id text collate "C" not null,
    channel     text collate "C" not null,
    primary key (workflow_id, channel)
);

-- The one clock of timers, schedules and retention. A test sets it by replacing this function.
create or replace function refold.log_now() returns timestamptz language sql volatile as
    'select clock_timestamp()';

-- A database or role that turned this off would turn "durable when it returns" into a lie.
create or replace function refold.be_durable() returns void language plpgsql as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end $$;

-- Passes if this worker is still the one it believes to be, and records that its flush number `f_flush_no` is in
-- this transaction; raises otherwise, so that a late writer is refused as a whole, in the same round trip. A number
-- passes once: a copy of a flush that hung in a broken line and arrives after it was sent again is refused too.
create or replace function refold.fence(f_worker text, f_lane text, f_epoch bigint, f_flush_no bigint) returns void
language plpgsql as $$
begin
    update refold.workers w set flush_no = f_flush_no
     where w.worker = f_worker and w.lane = f_lane and w.epoch = f_epoch and w.flush_no < f_flush_no;
    if not found then
        if exists (select from refold.workers w
                    where w.worker = f_worker and w.lane = f_lane and w.epoch = f_epoch) then
            raise exception 'flush % of worker % was committed before', f_flush_no, f_worker using errcode = 'RF003';
        end if;
        raise exception 'worker % was declared dead', f_worker using errcode = 'RF001';
    end if;
    perform refold.be_durable();
end $$;

-- Puts messages into the inbox of workflows that have not ended (also of IDs that are not started yet: they wait), and
-- tells the owners, other than `me` who knows already. A message that is there already is the same message.
create or replace function refold.deliver(i_id text[], i_message text[], i_type text[], i_body bytea[], me text)
returns void language plpgsql as $$
begin
    insert into refold.inbox (workflow_id, message_id, type, body)
    select i.id, i.message, i.type, i.body
      from unnest(i_id, i_message, i_type, i_body) with ordinality as i(id, message, type, body, place)
     where not exists (select from refold.workflows w where w.workflow_id = i.id and w.finished_at is not null)
     order by i.place
        on conflict do nothing;
    perform pg_notify(c.channel, '')
       from (select distinct coalesce('refold_' || w.owner, 'refold_work') as channel
               from refold.workflows w
              where w.workflow_id = any(i_id) and w.finished_at is null and w.owner is distinct from me) c;
end $$;

-- Locks the first workflow of each of these keys, so that it is still the first at the commit: whoever ends it waits, and
-- then finds those that this transaction puts behind it. Returns {key: status of its first}; a key without is idle.
create or replace function refold.hold_firsts(f_keys text[]) returns jsonb language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
declare
    held    jsonb;
    held_no bigint;
    all_no  bigint;
    skipped boolean;
begin
    perform from refold.workflows w
      where w.order_key = any(f_keys) and w.order_key is not null and w.finished_at is null and not w.behind
      order by w.workflow_id for share;
    -- Again: one that we waited for has ended, perhaps, and the next of its key is the first now. That one is not waited
    -- for, out of turn. If somebody is just ending it, the whole flush begins anew.
    select jsonb_object_agg(f.order_key, f.status), count(*), bool_or(f.owner is null and f.due_at is not null)
      into held, held_no, skipped
      from (select w.order_key, w.status, w.owner, w.due_at from refold.workflows w
             where w.order_key = any(f_keys) and w.order_key is not null and w.finished_at is null and not w.behind
               for share skip locked) f;
    select count(*) into all_no from refold.workflows w
     where w.order_key = any(f_keys) and w.order_key is not null and w.finished_at is null and not w.behind;
    if all_no > held_no then
        raise exception 'the first workflow of a key is just ending' using errcode = '40001';
    end if;
    if skipped then
        perform pg_notify('refold_work', '');  -- a claim may have passed over what we hold
    end if;
    return coalesce(held, '{}');
end $$;

-- Makes the next workflow of each of these keys the first, where there is none any more. Given a name with the key, a
-- next one of that name goes into `f_worker`'s hands at once, who has just ended such a one; returns those, in the form
-- \x03 ID \x03 name.
create or replace function refold.move_up(f_keys text[], f_names text[] default null, f_worker text default null)
returns text[] language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    now_  timestamptz := refold.log_now();
    due   timestamptz;
    taken text[];
begin
    with up as (
        update refold.workflows w
           set behind = false,
               owner = case when n.taken then f_worker end,
               status = case when n.taken then 'running' when w.status = 'parked' then 'parked' else 'pending' end,
               due_at = case when w.status <> 'parked' then greatest(now_, w.not_before) end,
               claimed_seq = case when n.taken then (select max(e.seq) + 1 from refold.events e
                                                      where e.workflow_id = w.workflow_id) else w.claimed_seq end
          from unnest(f_keys, f_names) as k(key, name), lateral (
               select o.workflow_id, k.name is not null and o.name = k.name and o.status <> 'parked'
                                     and o.suspicion < 3 and coalesce(o.not_before <= now_, true) as taken
                 from refold.workflows o
                where o.order_key = k.key and o.behind order by o.order_no, o.workflow_id limit 1) n
         where w.workflow_id = n.workflow_id and w.behind
           and not exists (select from refold.workflows f
                            where f.order_key = k.key and f.finished_at is null and not f.behind)
        returning w.workflow_id, w.name, w.owner, w.due_at
    )
    select min(up.due_at) filter (where up.owner is null),
           array_agg(E'\x03' || up.workflow_id || E'\x03' || up.name) filter (where up.owner is not null)
      into due, taken from up;
    perform refold.wake_for(due, now_);
    return taken;
end $$;

-- Tells workers of work that is due at `due`, so that nobody sleeps past it.
create or replace function refold.wake_for(due timestamptz, now_ timestamptz) returns void language plpgsql as $$
begin
    if due <= now_ then
        perform pg_notify('refold_work', '');
    elsif due is not null then
        perform pg_notify('refold_work', (extract(epoch from due) * 1000000)::bigint::text);
    end if;
end $$;

-- Says of those that are behind a parked one in these keys that they wait. It stays so when that one is settled: to let a
-- hundred thousand go on is to change one head, and as they don't count as runnable they stop no source, until each is the
-- first of its key.
create or replace function refold.hold_up(f_keys text[]) returns void language plpgsql as $$
begin
    update refold.workflows w set status = 'waiting'
      from (select n.workflow_id from refold.workflows n
             where n.order_key = any(f_keys) and n.order_key is not null and n.behind and n.status = 'pending'
               and exists (
                       select from refold.workflows p
                        where p.order_key = n.order_key and p.order_key is not null and p.status = 'parked'
                          and (not p.behind or (p.order_no, p.workflow_id) < (n.order_no, n.workflow_id)))) b
     where w.workflow_id = b.workflow_id;
end $$;

-- One flush: the appends of many workflows, their heads, starts, messages and positions, in the one transaction
-- that this statement is. An array left null has no rows. Returns the log's time and the starts whose ID existed.
--
-- Its statements are planned once a session, and always as a walk of the arrays with a look-up by primary key each. Left to
-- itself the planner plans anew at each call (half a millisecond for the heads alone), or keeps a plan from when the
-- tables were small, which reads them whole.
create or replace function refold.flush(
    f_worker text, f_lane text, f_epoch bigint, f_flush_no bigint,
    s_id text[], s_name text[], s_status text[], s_owner text[], s_source text[], s_parent text[], s_parent_no int[],
    s_digest text[], s_at timestamptz[], s_body bytea[], s_end bytea[],
    s_key text[], s_no bigint[], s_not_before timestamptz[], s_findable boolean[],
    h_id text[], h_status text[], h_owner text[], h_due timestamptz[], h_finished timestamptz[], h_fingerprint text[],
    h_takes_next boolean[],
    e_id text[], e_seq int[], e_type text[], e_at timestamptz[], e_body bytea[],
    p_source text[], p_stream text[], p_next_seq int[], p_position bytea[], p_label text[], p_at timestamptz[],
    d_id text[], d_message text[],
    i_id text[], i_message text[], i_type text[], i_body bytea[],
    wake boolean
) returns table (log_time timestamptz, existing text[]) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    s_behind boolean[];  -- of each start that takes a place in an order; null for the others
    held     jsonb;
    ended    text[];
    names    text[];
    parked   text[];
    moved    bigint;
begin
    if f_worker is not null then
        perform refold.fence(f_worker, f_lane, f_epoch, f_flush_no);
    else
        perform refold.be_durable();
    end if;
    existing := null;
    if s_key is not null then
        held := refold.hold_firsts(s_key);
        select array_agg(p.behind order by p.place),
               array_agg(case when p.behind and p.status <> 'parked'
                              then case when p.held_up then 'waiting' else 'pending' end else p.status end order by p.place)
          into s_behind, s_status
          from (select s.place, s.status,
                       case when s.takes_place then held ? s.key or row_number() over chain > 1 end as behind,
                       held ->> s.key = 'parked' or bool_or(s.status = 'parked') over (chain rows unbounded preceding)
                       or exists (select from refold.workflows k
                                   where k.order_key = s.key and k.order_key is not null and k.status = 'parked'
                                     and (k.order_no, k.workflow_id) < (s.no, s.id)) as held_up
                  -- Not "not exists": that may be planned as a hash of all of `workflows`, and a plan that was made when
                  -- the table was empty is kept for a long time.
                  from (select *, s.key is not null and s.status <> 'failed'
                                  and (select w.workflow_id from refold.workflows w where w.workflow_id = s.id) is null
                                  as takes_place
                          from unnest(s_id, s_status, s_key, s_no) with ordinality as s(id, status, key, no, place)) s
                window chain as (partition by s.key, s.takes_place order by s.no, s.id)) p;
    end if;
    if s_id is not null then
        with fresh as (
            insert into refold.workflows (workflow_id, name, status, created_at, finished_at, source, parent, parent_no,
                                          digest, owner, due_at, order_key, order_no, behind, not_before, findable,
                                          claimed_seq)
            select s.id, s.name, s.status, s.at, case when s.status = 'failed' then s.at end, s.source, s.parent,
                   s.parent_no, s.digest, case when s.behind then null else s.owner end,
                   case when s.behind or s.ending is not null then null else greatest(s.at, s.not_before) end,
                   s.key, s.no, coalesce(s.behind, false), s.not_before, coalesce(s.findable, false),
                   (s.owner is not null and s.behind is not true)::int
              from unnest(s_id, s_name, s_status, s_owner, s_source, s_parent, s_parent_no, s_digest, s_at, s_end,
                          s_key, s_no, s_behind, s_not_before, s_findable)
                   as s(id, name, status, owner, source, parent, parent_no, digest, at, ending,
                        key, no, behind, not_before, findable)
                on conflict do nothing
            returning workflow_id
        ), opened as (
            insert into refold.events (workflow_id, seq, type, at, body)
            select s.id, n.seq, n.type, s.at, n.body
              from unnest(s_id, s_status, s_at, s_body, s_end) as s(id, status, at, body, ending)
              join fresh on fresh.workflow_id = s.id,
                   lateral (values (0, 'WorkflowStarted', s.body),
                                   (1, case s.status when 'failed' then 'WorkflowFailed' else 'Parked' end, s.ending)
                           ) as n(seq, type, body)
             where n.body is not null
        )
        select array_agg(s.id) into existing
          from unnest(s_id) as s(id) where not exists (select from fresh where fresh.workflow_id = s.id);
        -- Mail came before these: their owner has to read it before it runs them. Marked with \x01, which no ID holds.
        select existing || array_agg(E'\x01' || s.id) into existing
          from unnest(s_id, s_owner) as s(id, owner),
               lateral (select from refold.inbox i where i.workflow_id = s.id limit 1) as mail
         where s.owner is not null;
    end if;
    if s_key is not null then
        -- Somebody else has begun the same order meanwhile. His rows have to be seen to get behind them.
        if exists (select from unnest(s_id, s_behind) as s(id, behind)
                    where s.behind is not null and s.id = any(existing)) then
            raise exception 'another hand-over began the same order' using errcode = '40001';
        end if;
        -- Not this worker's to run, after all. Marked with \x02.
        select existing || array_agg(E'\x02' || s.id) into existing
          from unnest(s_id, s_owner, s_behind) as s(id, owner, behind) where s.owner is not null and s.behind;
    end if;
    if s_not_before is not null then
        perform refold.wake_for((select min(t.at) from unnest(s_not_before) as t(at)), refold.log_now());
    end if;
    if h_id is not null then
        with changed as (
            update refold.workflows w
               set status = case when w.behind and h.status = 'pending' then 'waiting' else h.status end,
                   owner = h.owner, due_at = case when not w.behind then h.due end,
                   finished_at = h.finished, behind = w.behind and h.finished is null, fingerprint = h.fingerprint,
                   alone = w.alone and h.owner is not null, suspicion = 0, alone_deaths = 0
              from unnest(h_id, h_status, h_owner, h_due, h_finished, h_fingerprint, h_takes_next)
                   as h(id, status, owner, due, finished, fingerprint, takes_next)
             -- Not "=": that would be looked up in workflows_owned, through the dead entries of all that it ever owned.
             where w.workflow_id = h.id and w.owner is not distinct from f_worker
            returning w.order_key, w.status, w.finished_at, case when h.takes_next then w.name end as name
        )
        select array_agg(c.order_key) filter (where c.finished_at is not null),
               array_agg(c.name) filter (where c.finished_at is not null),
               array_agg(c.order_key) filter (where c.status = 'parked')
          into ended, names, parked
          from changed c where c.order_key is not null;
        -- Statements of their own: they see whom others have put behind these since this flush began.
        if ended is not null then
            existing := existing || refold.move_up(ended, names, f_worker);
        end if;
        if parked is not null then
            perform refold.hold_up(parked);
        end if;
    end if;
    if e_id is not null then
        insert into refold.events (workflow_id, seq, type, at, body)
        select * from unnest(e_id, e_seq, e_type, e_at, e_body);
    end if;
    if p_source is not null then
        insert into refold.positions (source, stream, next_seq, position, label, at)
        select * from unnest(p_source, p_stream, p_next_seq, p_position, p_label, p_at)
            on conflict (source) do update
           set stream = excluded.stream, next_seq = excluded.next_seq, position = excluded.position,
               label = excluded.label, at = excluded.at
         where (substring(positions.stream from '[0-9]+$')::bigint, positions.next_seq)
             < (substring(excluded.stream from '[0-9]+$')::bigint, excluded.next_seq);
        get diagnostics moved = row_count;
        -- A generation that is over has been deleted, and with it the events that would refuse who slept through that.
        if moved < cardinality(p_source) then
            raise exception 'a position has moved on' using errcode = '23505', constraint = 'one_event_per_seq';
        end if;
    end if;
    if d_id is not null then
        delete from refold.inbox i using unnest(d_id, d_message) as d(id, message)
         where i.workflow_id = d.id and i.message_id = d.message;
    end if;
    if i_id is not null then
        perform refold.deliver(i_id, i_message, i_type, i_body, f_worker);
    end if;
    if h_id is not null then
        delete from refold.inbox i using unnest(h_id, h_finished) as h(id, finished)
         where i.workflow_id = h.id and h.finished is not null;
        -- Whoever waits for an end is told at the commit. The table is empty nearly always.
        perform pg_notify(w.channel, w.workflow_id)
           from refold.waiters w
           join unnest(h_id, h_finished) as h(id, finished) on w.workflow_id = h.id
          where h.finished is not null;
    end if;
    if wake then
        perform pg_notify('refold_work', '');
    end if;
    log_time := refold.log_now();
    return next;
end $$;

-- Enters a lane of a worker; the first is "beat", and without that one alive there is no other. The epoch is the
-- transaction's number: it grows for the cluster's whole life, so no epoch of before a rebuild is ever valid again.
-- May be repeated, when the answer was lost: the last epoch counts.
create or replace function refold.register(f_worker text, f_lane text, f_lock_key bigint) returns bigint
language plpgsql as $$
declare
    fresh bigint := pg_current_xact_id()::text::bigint;
begin
    -- The lock waits for whoever declares this worker dead just now: a lane that entered after that would pass.
    perform from refold.workers w where w.worker = f_worker and w.lane = 'beat' for share;
    if exists (select from refold.workers w where w.worker = f_worker and w.dead_at is not null)
       or f_lane <> 'beat'
          and not exists (select from refold.workers w where w.worker = f_worker and w.lane = 'beat') then
        raise exception 'worker % was declared dead', f_worker using errcode = 'RF001';
    end if;
    insert into refold.workers (worker, lane, epoch, lock_key)
    values (f_worker, f_lane, fresh, f_lock_key)
        on conflict (worker, lane) do update
       set epoch = excluded.epoch, flush_no = 0, lock_key = excluded.lock_key;
    return fresh;
end $$;

-- Gives this worker up to `f_room` workflows that are due, longest waiting first, or have mail, and that it can run:
-- names[i] with code fingerprints[i]. `skip locked` keeps claimers from queueing behind one another; the fence keeps a
-- late one out. A workflow under suspicion of killing its worker is only given out alone. `unrun`: nobody ever had it.
-- One that is parked or stuck is given out when somebody has asked it to cancel: it needs no more than to be ended.
-- Planned anew each time, as `tick` is: a plan kept from when the tables were small reads all of `workflows` once they
-- are not (150 ms instead of 7 for 200 of 100,000).
create or replace function refold.claim(
    f_worker text, f_lane text, f_epoch bigint, f_flush_no bigint,
    f_names text[], f_fingerprints text[], f_room int, f_alone boolean
) returns table (workflow_id text, name text, suspicion smallint, alone_deaths smallint, unrun boolean) language plpgsql
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    now_ timestamptz := refold.log_now();
begin
    perform refold.fence(f_worker, f_lane, f_epoch, f_flush_no);
    return query
    with can as (
        select c.name, c.fingerprint from unnest(f_names, f_fingerprints) as c(name, fingerprint)
    ), due as (
        select d.workflow_id, d.unrun
          from can c, lateral (
               select w.workflow_id, w.due_at, w.claimed_seq = 0 as unrun from refold.workflows w
                where w.name = c.name and w.owner is null and w.due_at <= now_
                  and (w.status <> 'stuck' or w.fingerprint is distinct from c.fingerprint)
                  and (w.suspicion >= 3) = f_alone
                order by w.due_at limit f_room
                  for update skip locked) d
         order by d.due_at limit f_room
    ), mail as (
        -- From the inbox to the heads, one by one: it is short, and they are many, whatever the planner guesses.
        select m.workflow_id, m.unrun
          from (select i.workflow_id, bool_or(i.type = 'CancelRequested') as cancels
                  from refold.inbox i where not f_alone group by i.workflow_id) i, lateral (
               select w.workflow_id, w.claimed_seq = 0 as unrun from refold.workflows w
                where w.workflow_id = i.workflow_id and w.owner is null and not w.behind
                  and (w.status = 'waiting' or i.cancels and w.status in ('parked', 'stuck'))
                  and w.name = any(f_names)
                  for update skip locked) m
         limit f_room
    )
    update refold.workflows w
       set owner = f_worker, status = 'running', alone = f_alone, due_at = now_,
           claimed_seq = (select coalesce(max(e.seq) + 1, 0) from refold.events e where e.workflow_id = w.workflow_id)
      from (select * from due union select * from mail) p
     where w.workflow_id = p.workflow_id
    returning w.workflow_id, w.name, w.suspicion, w.alone_deaths, p.unrun;
end $$;

-- One statement a tick: this worker's heartbeat, and all that an idle worker wants to know. Rows are
--   now            the log's time
--   peer, gone     another worker and its beat; gone: and nobody holds its session lock any more
--   work           something is claimable now; suspect: and it has to be claimed alone
--   next           when the next waiting workflow comes due
--   mail           a workflow of this worker has messages
create or replace function refold.tick(f_worker text, f_epoch bigint, f_names text[], f_fingerprints text[])
returns table (kind text, key text, number bigint, at timestamptz) language plpgsql
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    now_ timestamptz := refold.log_now();
begin
    update refold.workers w set beat = beat + 1
     where w.worker = f_worker and w.lane = 'beat' and w.epoch = f_epoch;
    if not found then
        raise exception 'worker % was declared dead', f_worker using errcode = 'RF001';
    end if;
    return query select 'now', null::text, null::bigint, now_;
    return query
    select case when w.lock_key is not null and pg_try_advisory_xact_lock(w.lock_key) then 'gone' else 'peer' end,
           w.worker, w.beat, null::timestamptz
      from refold.workers w
     where w.lane = 'beat' and w.worker <> f_worker and w.dead_at is null;
    return query
    select distinct case when w.suspicion >= 3 then 'suspect' else 'work' end, null::text, null::bigint, null::timestamptz
      from unnest(f_names, f_fingerprints) as c(name, fingerprint), lateral (
           select h.suspicion from refold.workflows h
            where h.name = c.name and h.owner is null and h.due_at <= now_
              and (h.status <> 'stuck' or h.fingerprint is distinct from c.fingerprint)
            order by h.due_at limit 100) w;
    return query
    select 'work', null::text, null::bigint, null::timestamptz
     where exists (select from refold.inbox i, lateral (
                          select from refold.workflows h
                           where h.workflow_id = i.workflow_id and h.owner is null and not h.behind
                             and (h.status = 'waiting'
                                  or i.type = 'CancelRequested' and h.status in ('parked', 'stuck'))
                             and h.name = any(f_names) offset 0) w);
    return query
    select 'next', null::text, null::bigint, min(w.due_at)
      from unnest(f_names) as c(name), lateral (
           select h.due_at from refold.workflows h
            where h.name = c.name and h.owner is null and h.due_at > now_
            order by h.due_at limit 1) w
    having min(w.due_at) is not null;
    return query
    select 'mail', null::text, null::bigint, null::timestamptz
     where exists (select from refold.inbox i, lateral (
                          select from refold.workflows h
                           where h.workflow_id = i.workflow_id and h.owner = f_worker offset 0) w);
end $$;

-- Declares a worker dead whose beat is still the one that the caller has watched for too long: all its lanes are fenced
-- off and its workflows are free again, in this transaction. Returns how many; null when it has beaten since.
-- A death counts against a workflow only if it has made no progress (no event) since it was claimed.
create or replace function refold.declare_dead(f_worker text, f_epoch bigint, f_dead text, f_beat bigint) returns int
language plpgsql as $$
#variable_conflict use_column
declare
    freed int;
begin
    perform from refold.workers w
      where w.worker = f_worker and w.lane = 'beat' and w.epoch = f_epoch and w.dead_at is null for share;
    if not found then
        raise exception 'worker % was declared dead', f_worker using errcode = 'RF001';
    end if;
    perform from refold.workers w where w.worker = f_dead order by w.lane for update;
    if not exists (select from refold.workers w
                    where w.worker = f_dead and w.lane = 'beat' and w.beat = f_beat and w.dead_at is null) then
        return null;
    end if;
    update refold.workers w set epoch = epoch + 1, dead_at = clock_timestamp() where w.worker = f_dead;
    perform from refold.workflows w where w.owner = f_dead order by w.workflow_id for update;
    update refold.workflows w
       set owner = null, status = 'pending', due_at = refold.log_now(), alone = false,
           suspicion = case when p.progress then 0 else w.suspicion + 1 end,
           alone_deaths = case when p.progress then 0 when w.alone then w.alone_deaths + 1 else w.alone_deaths end
      from (select h.workflow_id,
                   exists (select from refold.events e
                            where e.workflow_id = h.workflow_id and e.seq >= h.claimed_seq) as progress
              from refold.workflows h where h.owner = f_dead) p
     where w.workflow_id = p.workflow_id and w.owner = f_dead;
    get diagnostics freed = row_count;
    delete from refold.workers w where w.dead_at < clock_timestamp() - interval '1 hour';
    perform pg_notify('refold_work', '');
    return freed;
end $$;

-- The log as text, for psql. A body that is not UTF-8 (a codec's) is shown as base64 with the reason.
create or replace function refold.as_text(body bytea) returns text language plpgsql immutable as $$
begin
    return convert_from(body, 'UTF8');
exception when others then
    return 'not UTF-8 text; base64: ' || encode(body, 'base64');
end $$;

create or replace view refold.history as
select workflow_id, seq, type, at, refold.as_text(body) as body from refold.events;

-- The last act of a transactional step: fence and event, in the transaction of the user's own SQL (rule 15).
create or replace function refold.record(
    f_worker text, f_lane text, f_epoch bigint, f_flush_no bigint,
    e_id text, e_seq int, e_type text, e_at timestamptz, e_body bytea
) returns void language plpgsql as $$
begin
    perform refold.fence(f_worker, f_lane, f_epoch, f_flush_no);
    insert into refold.events (workflow_id, seq, type, at, body) values (e_id, e_seq, e_type, e_at, e_body);
end $$;

-- A worker that is stuck in somebody's code gives itself up before the others blame its death on all that it holds:
-- only `f_culprit` comes under suspicion.
create or replace function refold.give_up(f_worker text, f_culprit text) returns void language plpgsql as $$
begin
    perform from refold.workers w where w.worker = f_worker order by w.lane for update;
    update refold.workers w set epoch = epoch + 1, dead_at = clock_timestamp()
     where w.worker = f_worker and w.dead_at is null;
    perform from refold.workflows w where w.owner = f_worker order by w.workflow_id for update;
    update refold.workflows w
       set owner = null, status = 'pending', due_at = refold.log_now(), alone = false,
           suspicion = w.suspicion + (w.workflow_id is not distinct from f_culprit)::int,
           alone_deaths = w.alone_deaths + (w.alone and w.workflow_id is not distinct from f_culprit)::int
     where w.owner = f_worker;
    perform pg_notify('refold_work', '');
end $$;

-- The regular end of a worker. What it still owns is free with it: a claim may have been on its way to it.
create or replace function refold.leave(f_worker text) returns void language plpgsql as $$
begin
    delete from refold.workers w where w.worker = f_worker and w.dead_at is null;
    perform from refold.workflows w where w.owner = f_worker order by w.workflow_id for update;
    update refold.workflows w set owner = null, status = 'pending', due_at = refold.log_now(), alone = false
     where w.owner = f_worker;
    if found then
        perform pg_notify('refold_work', '');
    end if;
end $$;
