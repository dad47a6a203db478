-- +goose Up
-- One text for SQLite >= 3.51.3 and PostgreSQL >= 15 (where store first creates the domain blob over bytea).
-- Times: unix microseconds UTC; valid_after, valid_before and window_start: unix seconds, as their protocols count.
-- Amounts in payments and settlements: the token's atomic units; prices, caps and events: micro-USD (int64).
-- Hex: lower-case 0x text. JSON: text.

-- The directory. Every change first bumps directory.revision, whose row lock puts changes in one order on both
-- engines, so that a directory transaction may read before it writes. Nothing else in this database may.
CREATE TABLE directory(id BIGINT PRIMARY KEY CHECK(id = 1), revision BIGINT NOT NULL);
INSERT INTO directory(id, revision) VALUES (1, 0);

CREATE TABLE tenants(                    -- owner and pay_to repeat the current version's
  id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, owner_id TEXT NOT NULL, pay_to TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'active' CHECK(status IN('active','paused','removed')),
  current_version BIGINT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  CHECK(slug = lower(slug)), CHECK(pay_to = '' OR length(pay_to) = 42 AND pay_to = lower(pay_to)));

CREATE TABLE tenant_versions(            -- immutable: a payment names the exact version it bought
  tenant_id TEXT NOT NULL REFERENCES tenants(id), version BIGINT NOT NULL CHECK(version > 0), manifest TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL CHECK(length(manifest_sha256) = 64), created_by TEXT NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY(tenant_id, version), UNIQUE(tenant_id, manifest_sha256)); -- an identical manifest re-activates its old version

CREATE TABLE hosts(host TEXT PRIMARY KEY CHECK(host = lower(host)), tenant_id TEXT NOT NULL REFERENCES tenants(id));
CREATE INDEX hosts_tenant ON hosts(tenant_id);

CREATE TABLE ledger_homes(               -- one ledger authority per payTo
  pay_to TEXT PRIMARY KEY CHECK(length(pay_to) = 42 AND pay_to = lower(pay_to)), home TEXT NOT NULL CHECK(home IN('native','edge')));

CREATE TABLE owners(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, pay_to TEXT NOT NULL, created_at BIGINT NOT NULL,
  CHECK(pay_to = '' OR length(pay_to) = 42 AND pay_to = lower(pay_to)));

CREATE TABLE secrets(                    -- quote and cursor MAC keys; ids count from 1, the highest is in use
  name TEXT NOT NULL, id BIGINT NOT NULL CHECK(id > 0), value BLOB NOT NULL, created_at BIGINT NOT NULL, retired_at BIGINT,
  PRIMARY KEY(name, id));

CREATE TABLE api_keys(                   -- owner NULL = a platform token
  id TEXT PRIMARY KEY, owner_id TEXT REFERENCES owners(id), prefix TEXT NOT NULL UNIQUE,
  secret_sha256 TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT, revoked_at BIGINT,
  CHECK(length(secret_sha256) = 64));

-- The facilitator's own book: what it was asked to settle, by us or by another server.
CREATE TABLE settlement_batches(         -- one row per (signer, account nonce): the unit that can be mined once
  id TEXT PRIMARY KEY, network TEXT NOT NULL, signer TEXT NOT NULL CHECK(signer = lower(signer)), signer_nonce BIGINT NOT NULL CHECK(signer_nonce >= 0),
  calldata_sha256 TEXT NOT NULL, item_count BIGINT NOT NULL CHECK(item_count BETWEEN 1 AND 500),
  state TEXT NOT NULL CHECK(state IN('signed','mined','final','orphaned')), mined_tx TEXT, block_number BIGINT, block_hash TEXT,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  UNIQUE(network, signer, signer_nonce),
  CHECK(state IN('signed','orphaned') OR (mined_tx IS NOT NULL AND block_hash IS NOT NULL AND block_number IS NOT NULL)));
CREATE INDEX settlement_batches_open ON settlement_batches(network, signer, signer_nonce) WHERE state = 'signed';

CREATE TABLE settlement_txs(             -- every signed attempt (fee bumps), stored BEFORE it is broadcast
  tx_hash TEXT PRIMARY KEY, batch_id TEXT NOT NULL REFERENCES settlement_batches(id), attempt BIGINT NOT NULL CHECK(attempt > 0),
  raw_tx BLOB NOT NULL, max_fee_wei TEXT NOT NULL, tip_wei TEXT NOT NULL, first_broadcast_at BIGINT, last_broadcast_at BIGINT,
  created_at BIGINT NOT NULL, UNIQUE(batch_id, attempt));

CREATE TABLE payments(
  id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL, version BIGINT NOT NULL, route TEXT NOT NULL,
  scheme TEXT NOT NULL CHECK(scheme IN('exact','upto','batch-settlement')),
  network TEXT NOT NULL, asset TEXT NOT NULL, payer TEXT NOT NULL, auth_nonce TEXT NOT NULL, pay_to TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK(amount > 0), valid_after BIGINT, valid_before BIGINT, -- NULL for vouchers, whose auth_nonce = keccak(channelId, maxClaimable)
  fingerprint TEXT NOT NULL,             -- sha256(method, host, path, canonical query, body sha256, tenant, version)
  payload_sha256 TEXT NOT NULL, payload BLOB NOT NULL, signature_sha256 TEXT NOT NULL, quote_sha256 TEXT, client_addr_hash TEXT,
  client_ref TEXT,                       -- payment-identifier id
  policy TEXT NOT NULL CHECK(policy IN('settle_first','settle_before_response','async')),
  work TEXT NOT NULL CHECK(work IN('pending','running','done','failed')),
  money TEXT NOT NULL CHECK(money IN('held','signed','mined','final','dead','released')),
  epoch BIGINT NOT NULL DEFAULT 1 CHECK(epoch > 0), owner TEXT, lease_until BIGINT,
  facilitator TEXT NOT NULL DEFAULT 'self', batch_id TEXT REFERENCES settlement_batches(id),
  tx_hash TEXT, block_number BIGINT, block_hash TEXT, log_index BIGINT,
  proof TEXT, error_code TEXT,
  counters TEXT NOT NULL,                -- JSON of what T1 took, given back when the payment ends uncharged
  event_id TEXT,                         -- the usage event that was written with the answer, completed with the money
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  FOREIGN KEY(tenant_id, version) REFERENCES tenant_versions(tenant_id, version),
  UNIQUE(network, asset, payer, auth_nonce),                                  -- I1 one authorization = one row, all nodes
  CHECK(valid_before > valid_after), CHECK(length(auth_nonce) = 66), CHECK(payer = lower(payer) AND length(payer) = 42),
  CHECK(auth_nonce = lower(auth_nonce)), CHECK(asset = lower(asset)), CHECK(pay_to = lower(pay_to)),
  CHECK(policy = 'settle_first' OR money IN('held','released') OR work = 'done'), -- I3 never submit before the response is stored
  CHECK(policy <> 'settle_first' OR work = 'pending' OR tx_hash IS NOT NULL OR money = 'released'), -- the running transition itself requires mined or final; a reorg may undo it later
  CHECK(money <> 'released' OR (batch_id IS NULL AND tx_hash IS NULL)),         -- I4 released = never submitted
  CHECK(money NOT IN('mined','final') OR (tx_hash IS NOT NULL AND block_hash IS NOT NULL)), -- I5 paid needs evidence
  CHECK(money <> 'dead' OR proof IS NOT NULL));                                 -- I6 'not charged' after submission needs proof
CREATE UNIQUE INDEX payments_ref ON payments(tenant_id, payer, client_ref) WHERE client_ref IS NOT NULL;
CREATE INDEX payments_lease ON payments(lease_until) WHERE money = 'held';
CREATE INDEX payments_settle ON payments(valid_before) WHERE money IN('held','signed');
CREATE INDEX payments_created ON payments(created_at);
CREATE INDEX payments_tenant ON payments(tenant_id, created_at);

CREATE TABLE payment_responses(          -- stored answer: replays return it byte for byte
  payment_id TEXT PRIMARY KEY REFERENCES payments(id), status BIGINT NOT NULL CHECK(status BETWEEN 200 AND 599),
  headers TEXT NOT NULL, body BLOB, body_ref TEXT, -- body_ref: a dataset's canonical request, or a content-addressed file
  body_sha256 TEXT NOT NULL, body_len BIGINT NOT NULL CHECK(body_len >= 0), expires_at BIGINT NOT NULL,
  CHECK(body IS NOT NULL OR body_ref IS NOT NULL));
CREATE INDEX payment_responses_exp ON payment_responses(expires_at);

CREATE TABLE refunds(                    -- I13 charged but undeliverable: at most one refund per payment
  payment_id TEXT PRIMARY KEY REFERENCES payments(id), amount BIGINT NOT NULL CHECK(amount > 0), reason TEXT NOT NULL,
  state TEXT NOT NULL CHECK(state IN('due','signed','final')), tx_hash TEXT, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  CHECK(state = 'due' OR tx_hash IS NOT NULL));

CREATE TABLE settlements(
  id TEXT PRIMARY KEY, network TEXT NOT NULL, asset TEXT NOT NULL, payer TEXT NOT NULL, auth_nonce TEXT NOT NULL, pay_to TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK(amount > 0), valid_before BIGINT NOT NULL, payload BLOB NOT NULL, requested_by TEXT, created_at BIGINT NOT NULL,
  UNIQUE(network, asset, payer, auth_nonce),
  CHECK(length(auth_nonce) = 66), CHECK(auth_nonce = lower(auth_nonce)), CHECK(asset = lower(asset)), CHECK(payer = lower(payer) AND length(payer) = 42));

CREATE TABLE settlement_items(           -- live: this batch may charge it, or did
  batch_id TEXT NOT NULL REFERENCES settlement_batches(id), idx BIGINT NOT NULL, settlement_id TEXT NOT NULL REFERENCES settlements(id),
  live BIGINT NOT NULL DEFAULT 1 CHECK(live IN(0,1)), outcome TEXT CHECK(outcome IN('paid','used_elsewhere','reverted')),
  tx_hash TEXT, block_number BIGINT, block_hash TEXT, log_index BIGINT,
  PRIMARY KEY(batch_id, idx), UNIQUE(batch_id, settlement_id),
  CHECK(outcome IS NULL OR outcome <> 'reverted' OR live = 0),
  CHECK(outcome IS NULL OR outcome <> 'paid' OR (tx_hash IS NOT NULL AND block_hash IS NOT NULL)));
CREATE UNIQUE INDEX settlement_items_live ON settlement_items(settlement_id) WHERE live = 1;  -- I7 at most one live batch
CREATE INDEX settlement_items_settlement ON settlement_items(settlement_id);

CREATE TABLE exposure(                   -- async policy: unsettled value delivered per payer and seller; payer '*' = the payTo's total cap
  network TEXT NOT NULL, asset TEXT NOT NULL, pay_to TEXT NOT NULL, payer TEXT NOT NULL, held BIGINT NOT NULL DEFAULT 0, cap BIGINT NOT NULL,
  bad_debt BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY(network, asset, pay_to, payer), CHECK(held >= 0 AND held <= cap));      -- I8

CREATE TABLE channels(                   -- batch-settlement vouchers
  channel_id TEXT PRIMARY KEY, pay_to TEXT NOT NULL, network TEXT NOT NULL, config TEXT NOT NULL,
  balance BIGINT NOT NULL, total_claimed BIGINT NOT NULL DEFAULT 0, charged BIGINT NOT NULL DEFAULT 0, reserved BIGINT NOT NULL DEFAULT 0,
  signed_max BIGINT NOT NULL DEFAULT 0, voucher_sig BLOB, withdraw_at BIGINT NOT NULL DEFAULT 0, epoch BIGINT NOT NULL DEFAULT 1,
  onchain_synced_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  CHECK(reserved >= 0), CHECK(total_claimed <= charged AND charged <= signed_max AND signed_max <= balance)); -- I9

CREATE TABLE usage_events(               -- a paid call's event: in the SAME transaction that makes the answer deliverable
  seq BIGINT NOT NULL,                   -- order of arrival: rises on a node, follows the clock across nodes
  tenant_id TEXT NOT NULL, event_id TEXT NOT NULL, payment_id TEXT REFERENCES payments(id), api_id TEXT NOT NULL, route TEXT NOT NULL, consumer TEXT NOT NULL,
  owner TEXT NOT NULL, directory TEXT NOT NULL, lifecycle TEXT NOT NULL, latency_us BIGINT NOT NULL, price BIGINT NOT NULL,
  billable BIGINT NOT NULL CHECK(billable IN(0,1)), countable BIGINT NOT NULL CHECK(countable IN(0,1)), error TEXT NOT NULL,
  units BIGINT NOT NULL CHECK(units >= 0), amount BIGINT NOT NULL CHECK(amount >= 0), bytes_out BIGINT NOT NULL DEFAULT 0, status BIGINT NOT NULL,
  at BIGINT NOT NULL, rolled BIGINT NOT NULL DEFAULT 0 CHECK(rolled IN(0,1)),
  PRIMARY KEY(api_id, event_id));        -- I10; an API is one tenant's for ever, and events of others have no tenant here
CREATE INDEX usage_seq ON usage_events(seq);
CREATE INDEX usage_at ON usage_events(at);
CREATE INDEX usage_payment ON usage_events(payment_id) WHERE payment_id IS NOT NULL;

CREATE TABLE usage_hourly(
  tenant_id TEXT NOT NULL, hour BIGINT NOT NULL, route TEXT NOT NULL, consumer TEXT NOT NULL, status_class BIGINT NOT NULL,
  calls BIGINT NOT NULL, units BIGINT NOT NULL, amount BIGINT NOT NULL, bytes_out BIGINT NOT NULL,
  PRIMARY KEY(tenant_id, hour, route, consumer, status_class));

CREATE TABLE counters(                   -- exact caps and quotas
  scope TEXT NOT NULL, window_start BIGINT NOT NULL, used BIGINT NOT NULL DEFAULT 0, cap BIGINT NOT NULL,
  PRIMARY KEY(scope, window_start), CHECK(used >= 0 AND used <= cap));        -- I11

CREATE TABLE counter_leases(             -- batches of tokens handed to a node
  scope TEXT NOT NULL, window_start BIGINT NOT NULL, node TEXT NOT NULL, lease_id TEXT NOT NULL UNIQUE, granted BIGINT NOT NULL,
  returned BIGINT NOT NULL DEFAULT 0, expires_at BIGINT NOT NULL, PRIMARY KEY(scope, window_start, lease_id), CHECK(returned BETWEEN 0 AND granted));

CREATE TABLE audit_log(
  chain TEXT NOT NULL, seq BIGINT NOT NULL CHECK(seq > 0), prev_hash TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, at BIGINT NOT NULL,
  actor TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY(chain, seq), UNIQUE(chain, prev_hash));                         -- I12 no fork, no gap (seq = prev+1 in code)

CREATE TABLE outbox(                     -- webhooks and edge sync: at least once, consumer dedupes on id
  id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL, topic TEXT NOT NULL, body TEXT NOT NULL, attempts BIGINT NOT NULL DEFAULT 0,
  next_at BIGINT NOT NULL, done_at BIGINT, created_at BIGINT NOT NULL);
CREATE INDEX outbox_due ON outbox(next_at) WHERE done_at IS NULL;

CREATE TABLE chain_cursor(network TEXT PRIMARY KEY, scanned_number BIGINT NOT NULL, scanned_hash TEXT NOT NULL, final_number BIGINT NOT NULL,
  final_time BIGINT NOT NULL, updated_at BIGINT NOT NULL, CHECK(final_number <= scanned_number));

CREATE TABLE leader(name TEXT PRIMARY KEY, node TEXT NOT NULL, epoch BIGINT NOT NULL, expires_at BIGINT NOT NULL);
