// The part of LND's REST that the ledger uses, over two real Lightning nodes; for tests, on loopback.
// Started with --macaroon HEX; prints one line, {"port": N}; ends when its stdin closes.
// POST /test/pay {payment_request, amt_msat?}: the other node pays; not a path of LND's.
import * as http from 'node:http';
import { Pair, sha256 } from './nodes.mjs';

const BODY_BYTES_MAX = 64 << 10;
const macaroon = process.argv[process.argv.indexOf('--macaroon') + 1];
const pair = await Pair.open();
const invoices = new Map();  // payment hash in hex -> invoice
const subscribers = new Set();
let settled = 0;

const UNKNOWN = 2, INVALID_ARGUMENT = 3, NOT_FOUND = 5;
const STATUS = { [UNKNOWN]: 500, [INVALID_ARGUMENT]: 400, [NOT_FOUND]: 404 };

class Refusal extends Error {
  constructor(code, message) { super(message); this.code = code; }
}

function shown(invoice) {
  if (invoice.state === 'OPEN' && Date.now() >= invoice.expires_ms) invoice.state = 'CANCELED';
  return {
    memo: invoice.memo,
    r_preimage: invoice.preimage.toString('base64'),
    r_hash: invoice.hash.toString('base64'),
    value: String(Math.floor(invoice.value_msat / 1000)),
    value_msat: String(invoice.value_msat),
    settled: invoice.state === 'SETTLED',
    creation_date: String(Math.floor(invoice.created_ms / 1000)),
    settle_date: String(Math.floor(invoice.settled_ms / 1000)),
    payment_request: invoice.bolt11,
    expiry: String(invoice.expiry),
    add_index: String(invoice.add_index),
    settle_index: String(invoice.settle_index),
    amt_paid: String(invoice.paid_msat),
    amt_paid_sat: String(Math.floor(invoice.paid_msat / 1000)),
    amt_paid_msat: String(invoice.paid_msat),
    state: invoice.state,
  };
}

function addInvoice(body) {
  const preimage = Buffer.from(body.r_preimage ?? '', 'base64');
  if (preimage.length !== 32) throw new Refusal(INVALID_ARGUMENT, 'payment preimage must be 32 bytes');
  const value_msat = Number(body.value_msat), expiry = Number(body.expiry ?? 3600);
  if (!Number.isSafeInteger(value_msat) || value_msat <= 0) {
    throw new Refusal(INVALID_ARGUMENT, `invalid value_msat ${body.value_msat}`);
  }
  const hash = sha256(preimage), key = hash.toString('hex');
  if (invoices.has(key)) throw new Refusal(UNKNOWN, 'invoice with payment hash already exists');
  const bolt11 = pair.invoice(hash, value_msat, body.memo ?? '', expiry);
  const created_ms = Date.now();
  invoices.set(key, {
    preimage, hash, bolt11, value_msat, expiry, memo: body.memo ?? '', created_ms,
    expires_ms: created_ms + expiry * 1000, settled_ms: 0, paid_msat: 0, state: 'OPEN',
    add_index: invoices.size + 1, settle_index: 0,
  });
  return {
    r_hash: hash.toString('base64'), payment_request: bolt11, add_index: String(invoices.size),
  };
}

function found(hash) {
  const invoice = invoices.get(hash);
  if (!invoice) throw new Refusal(NOT_FOUND, 'unable to locate invoice');
  return invoice;
}

function cancel(body) {
  const invoice = found(Buffer.from(body.payment_hash ?? '', 'base64').toString('hex'));
  shown(invoice);
  if (invoice.state === 'SETTLED') throw new Refusal(UNKNOWN, 'invoice already settled');
  invoice.state = 'CANCELED';
  return {};
}

function pay(body) {
  const sent = [];
  const preimage = pair.pay(body.payment_request, body.amt_msat ?? 0, (hash, msat) => {
    const invoice = invoices.get(hash.toString('hex'));
    if (!invoice || shown(invoice).state !== 'OPEN' || msat < invoice.value_msat) return null;
    invoice.paid_msat = msat;
    sent.push(invoice);
    return invoice.preimage;
  });
  for (const invoice of preimage ? sent : []) {
    Object.assign(invoice, { state: 'SETTLED', settled_ms: Date.now(), settle_index: ++settled });
    for (const stream of subscribers) tell(stream, invoice);
  }
  return preimage
    ? { status: 'SUCCEEDED', payment_preimage: preimage.toString('hex') }
    : { status: 'FAILED' };
}

const tell = (stream, invoice) => stream.write(`${JSON.stringify({ result: shown(invoice) })}\n`);

// Settled invoices after `settle_index`, then new ones as they come; 0 is new ones only, as in LND.
function subscribe(after, response) {
  response.writeHead(200, { 'Content-Type': 'application/json' });
  response.flushHeaders();
  if (after > 0) {
    [...invoices.values()].filter(each => each.settle_index > after)
      .sort((one, two) => one.settle_index - two.settle_index)
      .forEach(each => tell(response, each));
  }
  subscribers.add(response);
  response.on('close', () => subscribers.delete(response));
}

function answer(method, url, body, response) {
  const path = url.pathname, what = `${method} ${path}`;
  if (what === 'GET /v1/getinfo') {
    return {
      identity_pubkey: Buffer.from(pair.payee.id).toString('hex'), alias: 'gristmill rig',
      num_active_channels: pair.payee.manager.list_usable_channels().length,
      block_height: pair.height, chains: [{ chain: 'bitcoin', network: 'regtest' }],
    };
  }
  if (what === 'POST /v1/invoices') return addInvoice(body);
  if (what === 'POST /v2/invoices/cancel') return cancel(body);
  if (what === 'POST /test/pay') return pay(body);
  if (what === 'GET /v1/invoices/subscribe') {
    subscribe(Number(url.searchParams.get('settle_index') ?? 0), response);
    return null;
  }
  const look = path.match(/^\/v1\/invoice\/([0-9a-f]{64})$/);
  if (method === 'GET' && look) return shown(found(look[1]));
  throw new Refusal(NOT_FOUND, 'Not Found');
}

const server = http.createServer((request, response) => {
  const chunks = [];
  let size = 0;
  request.on('data', chunk => {
    size += chunk.length;
    if (size > BODY_BYTES_MAX) request.destroy();
    else chunks.push(chunk);
  });
  request.on('end', () => {
    let status = 200, said;
    try {
      if (request.headers['grpc-metadata-macaroon'] !== macaroon) {
        throw new Refusal(UNKNOWN, 'verification failed: signature mismatch after caveat verification');
      }
      const text = Buffer.concat(chunks).toString();
      const url = new URL(request.url, 'http://127.0.0.1');
      said = answer(request.method, url, text ? JSON.parse(text) : {}, response);
    } catch (error) {
      status = STATUS[error.code] ?? 500;
      said = { code: error.code ?? UNKNOWN, message: error.message, details: [] };
    }
    if (said === null) return;
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(said));
  });
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
process.stdin.on('end', () => process.exit(0)).resume();
