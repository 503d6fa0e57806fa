-- Orders, starts that wait for their time, and starts that can be found by their digest. schema.sql is run after this.

alter table refold.workflows
    add column if not exists order_key  text collate "C",
    add column if not exists order_no   bigint,
    add column if not exists behind     boolean not null default false,
    add column if not exists not_before timestamptz,
    add column if not exists findable   boolean not null default false;

-- What programs of the release before still call, while both run.
create or replace function refold.flush(
    f_worker text, f_lane text, f_epoch bigint, f_flush_no bigint,
    s_id text[], s_name text[], s_status text[], s_owner text[], s_source text[], s_parent text[], s_parent_no int[],
    s_digest text[], s_at timestamptz[], s_body bytea[], s_end bytea[],
    h_id text[], h_status text[], h_owner text[], h_due timestamptz[], h_finished timestamptz[], h_fingerprint text[],
    e_id text[], e_seq int[], e_type text[], e_at timestamptz[], e_body bytea[],
    p_source text[], p_stream text[], p_next_seq int[], p_position bytea[], p_label text[], p_at timestamptz[],
    d_id text[], d_message text[],
    i_id text[], i_message text[], i_type text[], i_body bytea[],
    wake boolean
) returns table (log_time timestamptz, existing text[]) language plpgsql
as $$
begin
    return query
    select f.log_time, f.existing
      from refold.flush(
           f_worker, f_lane, f_epoch, f_flush_no,
           s_id, s_name, s_status, s_owner, s_source, s_parent, s_parent_no, s_digest, s_at, s_body, s_end,
           null::text[], null::bigint[], null::timestamptz[], null::boolean[],
           h_id, h_status, h_owner, h_due, h_finished, h_fingerprint, null::boolean[],
           e_id, e_seq, e_type, e_at, e_body,
           p_source, p_stream, p_next_seq, p_position, p_label, p_at,
           d_id, d_message, i_id, i_message, i_type, i_body, wake) f;
end $$;

-- Says one thing more of each workflow that it gives; its callers name the columns that they want.
drop function if exists refold.claim(text, text, bigint, bigint, text[], text[], int, boolean);
