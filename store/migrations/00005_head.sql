-- +goose Up
-- The head of the chain of commits: every commit on SQLite replaces it in the same transaction, and a file beside the
-- database remembers it. A database whose head is older than the file's has lost commits. PostgreSQL looks after itself.
CREATE TABLE commit_head(id BIGINT PRIMARY KEY CHECK(id = 1), seq BIGINT NOT NULL CHECK(seq >= 0), hash TEXT NOT NULL);
INSERT INTO commit_head(id, seq, hash) VALUES (1, 0, '');
