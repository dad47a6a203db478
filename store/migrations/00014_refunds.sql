-- +goose Up
-- Refunds are paid. What pays one is an EIP-3009 authorization of the seller's, stored BEFORE anybody may send it; its nonce is
-- made of the payment's own authorization, so that however often one is signed, in whatever copy of this book, a token moves the
-- money once. The table of 00001 wanted a transaction to be known before anything was signed; nothing ever left 'due' in it.
CREATE TABLE refunds_paid(                -- I13: at most one refund per payment
  payment_id TEXT PRIMARY KEY REFERENCES payments(id), amount BIGINT NOT NULL CHECK(amount > 0), reason TEXT NOT NULL,
  state TEXT NOT NULL CHECK(state IN('due','signed','final')),
  auth_nonce TEXT UNIQUE CHECK(length(auth_nonce) = 66 AND auth_nonce = lower(auth_nonce)), valid_before BIGINT, payload BLOB,
  tx_hash TEXT, block_number BIGINT, block_hash TEXT, log_index BIGINT, -- where the chain shows the transfer; a reorganisation takes it back until it is final
  proof TEXT,                              -- why what was signed will never be charged: the same nonce may be signed for again
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  CHECK(state = 'due' OR (auth_nonce IS NOT NULL AND valid_before IS NOT NULL AND payload IS NOT NULL)),
  CHECK(state <> 'due' OR (auth_nonce IS NULL AND tx_hash IS NULL)),
  CHECK(tx_hash IS NULL OR (block_hash IS NOT NULL AND block_number IS NOT NULL AND log_index IS NOT NULL AND proof IS NULL)),
  CHECK(state <> 'final' OR tx_hash IS NOT NULL));
INSERT INTO refunds_paid(payment_id, amount, reason, state, created_at, updated_at)
  SELECT payment_id, amount, reason, state, created_at, updated_at FROM refunds;
DROP TABLE refunds;
ALTER TABLE refunds_paid RENAME TO refunds;
CREATE INDEX refunds_open ON refunds(created_at, payment_id) WHERE state <> 'final';
