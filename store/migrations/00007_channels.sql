-- +goose Up
-- Payment channels (batch-settlement). Nothing was ever written to the table of 00001.
DROP TABLE channels;
CREATE TABLE channels(
  channel_id TEXT PRIMARY KEY CHECK(length(channel_id) = 66 AND channel_id = lower(channel_id)),
  network TEXT NOT NULL, asset TEXT NOT NULL CHECK(asset = lower(asset)), payer TEXT NOT NULL CHECK(payer = lower(payer)),
  pay_to TEXT NOT NULL CHECK(pay_to = lower(pay_to)), config TEXT NOT NULL,
  balance BIGINT NOT NULL, total_claimed BIGINT NOT NULL DEFAULT 0, withdrawal BIGINT NOT NULL DEFAULT 0, withdraw_at BIGINT NOT NULL DEFAULT 0,
  refund_nonce BIGINT NOT NULL DEFAULT 0, onchain_synced_at BIGINT NOT NULL, -- what the chain said, and when
  charged BIGINT NOT NULL DEFAULT 0, signed_max BIGINT NOT NULL DEFAULT 0,
  voucher_max BIGINT NOT NULL DEFAULT 0, voucher_sig BLOB, -- the newest voucher; signed_max is what of it the balance still covers
  forfeited BIGINT NOT NULL DEFAULT 0,     -- charged, and withdrawn before it was claimed
  unclaimed_at BIGINT,                     -- since when charged > total_claimed; NULL: it is not
  reserved BIGINT NOT NULL DEFAULT 0, holder TEXT, lease_until BIGINT NOT NULL DEFAULT 0, epoch BIGINT NOT NULL DEFAULT 1, -- a call that must not be done twice
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  CHECK(reserved >= 0 AND withdrawal >= 0 AND forfeited >= 0 AND total_claimed >= 0),
  CHECK(charged = total_claimed OR voucher_sig IS NOT NULL AND charged <= voucher_max), -- what is due can be claimed
  CHECK(total_claimed <= charged AND charged <= signed_max AND signed_max <= balance)); -- I9
CREATE INDEX channels_due ON channels(network, pay_to) WHERE unclaimed_at IS NOT NULL;
CREATE INDEX channels_payer ON channels(payer);

CREATE TABLE vouchers(                     -- one increment of a channel and the answer that it bought; written with the charge
  channel_id TEXT NOT NULL REFERENCES channels(channel_id), max_claimable BIGINT NOT NULL CHECK(max_claimable > 0),
  id TEXT NOT NULL UNIQUE, amount BIGINT NOT NULL CHECK(amount > 0 AND amount <= max_claimable),
  tenant_id TEXT NOT NULL, version BIGINT NOT NULL, route TEXT NOT NULL,
  fingerprint TEXT NOT NULL, signature_sha256 TEXT NOT NULL, quote_sha256 TEXT, client_addr_hash TEXT, event_id TEXT NOT NULL,
  status BIGINT NOT NULL CHECK(status BETWEEN 200 AND 599), headers TEXT NOT NULL, body BLOB, body_ref TEXT,
  body_sha256 TEXT NOT NULL, body_len BIGINT NOT NULL CHECK(body_len >= 0), expires_at BIGINT NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY(channel_id, max_claimable),  -- one increment, one request
  FOREIGN KEY(tenant_id, version) REFERENCES tenant_versions(tenant_id, version),
  CHECK(body IS NOT NULL OR body_ref IS NOT NULL));
CREATE INDEX vouchers_exp ON vouchers(expires_at);
