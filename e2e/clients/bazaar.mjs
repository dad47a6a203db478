// Reads the challenge of URL as a catalog does, with @x402/extensions: is its
// bazaar extension valid, and what does it say?
//
//	URL   what to probe, without a payment
//
// Prints {valid, errors, spec, info, headerBytes}.
import { decodePaymentRequiredHeader } from "@x402/core/http";
import { extractDiscoveryInfoFromExtension, validateDiscoveryExtension, validateDiscoveryExtensionSpec } from "@x402/extensions/bazaar";
import { print } from "./common.mjs";

const header = (await fetch(process.env.URL)).headers.get("PAYMENT-REQUIRED");
const extension = decodePaymentRequiredHeader(header).extensions?.bazaar;
if (!extension) {
  print({ valid: false, errors: ["there is none"], headerBytes: header.length });
} else {
  const { valid, errors } = validateDiscoveryExtension(extension);
  print({ valid, errors, spec: validateDiscoveryExtensionSpec(extension), info: valid ? extractDiscoveryInfoFromExtension(extension) : null, headerBytes: header.length });
}
