package x402

import "github.com/402claw/clawr"

// The reasons of the exact scheme on EVM chains, spelled as the reference SDK
// (@x402/evm 2.27, exact/facilitator/errors.ts) spells them. clawr's own are
// at the end.
const (
	ReasonScheme            clawr.Code = "invalid_exact_evm_scheme"
	ReasonNetwork           clawr.Code = "invalid_exact_evm_network_mismatch"
	ReasonDomain            clawr.Code = "invalid_exact_evm_missing_eip712_domain"
	ReasonRecipient         clawr.Code = "invalid_exact_evm_recipient_mismatch"
	ReasonSignature         clawr.Code = "invalid_exact_evm_signature"
	ReasonValidBefore       clawr.Code = "invalid_exact_evm_payload_authorization_valid_before"
	ReasonValidAfter        clawr.Code = "invalid_exact_evm_payload_authorization_valid_after"
	ReasonValue             clawr.Code = "invalid_exact_evm_payload_authorization_value_mismatch"
	ReasonValueV1           clawr.Code = "invalid_exact_evm_authorization_value" // what version 1 calls ReasonValue
	ReasonTransactionFailed clawr.Code = "invalid_exact_evm_transaction_failed"
	ReasonTransferEvent     clawr.Code = "invalid_exact_evm_transfer_event_mismatch"
	ReasonTokenName         clawr.Code = "invalid_exact_evm_token_name_mismatch"
	ReasonTokenVersion      clawr.Code = "invalid_exact_evm_token_version_mismatch"
	ReasonNotSupported      clawr.Code = "invalid_exact_evm_eip3009_not_supported"
	ReasonNonceUsed         clawr.Code = "invalid_exact_evm_nonce_already_used"
	ReasonBalance           clawr.Code = "invalid_exact_evm_insufficient_balance"
	ReasonSimulation        clawr.Code = "invalid_exact_evm_transaction_simulation_failed"
	ReasonParseSignature    clawr.Code = "invalid_exact_evm_failed_to_parse_signature"
	ReasonUndeployed        clawr.Code = "invalid_exact_evm_payload_undeployed_smart_wallet"
	ReasonNoContract        clawr.Code = "asset_not_deployed_contract"
	ReasonFactory           clawr.Code = "eip6492_factory_not_allowed"
	ReasonDeployment        clawr.Code = "smart_wallet_deployment_failed"
	ReasonPayloadType       clawr.Code = "unsupported_payload_type"
	ReasonTransactionState  clawr.Code = "invalid_transaction_state"
	ReasonPending                      = clawr.CodeSettlementPending
	ReasonEchoMismatch      clawr.Code = "extension_echo_mismatch"

	// The protocol's words where the SDK has a sentence or an exception.
	ReasonNoMatch clawr.Code = "invalid_payment_requirements"

	// clawr's own: see Quotes.
	ReasonQuoteMalformed clawr.Code = "quote_malformed"
	ReasonQuoteForeign   clawr.Code = "quote_foreign"
	ReasonQuoteExpired   clawr.Code = "quote_expired"
)
