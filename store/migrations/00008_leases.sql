-- +goose Up
-- What several nodes share that is no money. full_at: unix nanoseconds at which a rate bucket will be full again; one
-- that is full is the same as none, and its row is removed.
CREATE TABLE rate_buckets(bucket TEXT PRIMARY KEY, full_at BIGINT NOT NULL);
CREATE INDEX rate_buckets_full ON rate_buckets(full_at);
-- The nodes that serve, until expires_at: what is shared is shared among so many.
CREATE TABLE nodes(node TEXT PRIMARY KEY, expires_at BIGINT NOT NULL);
CREATE INDEX counter_leases_expiry ON counter_leases(expires_at);
