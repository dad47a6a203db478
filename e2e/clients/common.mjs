// What the programs here share: how an answer is reported.

// seen is a response as the tests want it; receipt is its settlement header.
export async function seen(response, receipt, decode) {
  const text = await response.text();
  let body = text;
  try {
    body = JSON.parse(text);
  } catch {
    // it stays text
  }
  return { status: response.status, headers: Object.fromEntries(response.headers), body, paymentResponse: receipt ? decode(receipt) : null };
}

// print ends the program with one line of JSON.
export function print(value) {
  process.stdout.write(JSON.stringify(value, (_, v) => (typeof v === "bigint" ? v.toString() : v)) + "\n");
}

// listen serves app on a free port of this machine, or on PORT, and says which.
export function listen(app) {
  const server = app.listen(Number(process.env.PORT ?? 0), "127.0.0.1", () => print({ listening: server.address().port }));
}
