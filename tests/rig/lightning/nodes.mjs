// Two real Lightning nodes (LDK) in one process, a real channel between them, on a chain of headers
// that is made here: BOLT11 invoices, HTLCs and preimages are the protocol's own.
import * as crypto from 'node:crypto';
import * as fs from 'node:fs';
import * as ldk from 'lightningdevkit';

const CHANNEL_SAT = 16_000_000;
const REGTEST_GENESIS = '06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f';
const ROUNDS_MAX = 200;

export const sha256 = bytes => crypto.createHash('sha256').update(bytes).digest();
const twice = bytes => sha256(sha256(bytes));
const little = (number, width) => {
  const bytes = Buffer.alloc(width);
  bytes.writeUIntLE(number, 0, Math.min(width, 6));
  return bytes;
};

function taken(result, what) {
  if (result?.is_ok && !result.is_ok()) {
    throw new Error(`${what}: ${result.constructor.name} ${result.err?.constructor?.name ?? result.err}`);
  }
  return result?.res ?? result;
}

function makeNode(seedByte) {
  const network = ldk.Network.LDKNetwork_Regtest;
  const completed = ldk.ChannelMonitorUpdateStatus.LDKChannelMonitorUpdateStatus_Completed;
  const sent = [];
  const fees = ldk.FeeEstimator.new_impl({ get_est_sat_per_1000_weight: () => 253 });
  const broadcaster = ldk.BroadcasterInterface.new_impl({
    broadcast_transactions: transactions => { sent.push(...transactions); },
  });
  const logger = ldk.Logger.new_impl({ log: () => {} });
  const persister = ldk.Persist.new_impl({
    persist_new_channel: () => completed,
    update_persisted_channel: () => completed,
    archive_persisted_channel: () => {},
  });
  const monitor = ldk.ChainMonitor.constructor_new(
    ldk.Option_FilterZ.constructor_none(), broadcaster, logger, fees, persister);
  const keys = ldk.KeysManager.constructor_new(
    new Uint8Array(32).fill(seedByte), BigInt(42), seedByte);
  const graph = ldk.NetworkGraph.constructor_new(network, logger);
  const scorer = ldk.ProbabilisticScorer.constructor_new(
    ldk.ProbabilisticScoringDecayParameters.constructor_default(), graph, logger);
  const score = ldk.MultiThreadedLockableScore.constructor_new(scorer.as_Score());
  const router = ldk.DefaultRouter.constructor_new(
    graph, logger, keys.as_EntropySource(), score.as_LockableScore(),
    ldk.ProbabilisticScoringFeeParameters.constructor_default());
  const messageRouter = ldk.DefaultMessageRouter.constructor_new(graph, keys.as_EntropySource());
  const config = ldk.UserConfig.constructor_default();
  const handshake = config.get_channel_handshake_config();
  handshake.set_minimum_depth(1);
  config.set_channel_handshake_config(handshake);
  const chain = ldk.ChainParameters.constructor_new(
    network, ldk.BestBlock.constructor_from_network(network));
  const manager = ldk.ChannelManager.constructor_new(
    fees, monitor.as_Watch(), broadcaster, router.as_Router(), messageRouter.as_MessageRouter(),
    logger, keys.as_EntropySource(), keys.as_NodeSigner(), keys.as_SignerProvider(), config, chain,
    Math.floor(Date.now() / 1000));
  const ignoring = ldk.IgnoringMessageHandler.constructor_new();
  const peers = ldk.PeerManager.constructor_new(
    manager.as_ChannelMessageHandler(), ignoring.as_RoutingMessageHandler(),
    ignoring.as_OnionMessageHandler(), ignoring.as_CustomMessageHandler(), seedByte,
    keys.as_EntropySource().get_secure_random_bytes(), logger, keys.as_NodeSigner());
  return {
    manager, peers, monitor, sent, inbox: [], id: manager.get_our_node_id(),
    kept: [fees, broadcaster, logger, persister, keys, graph, scorer, score, router, messageRouter,
      config, chain, ignoring],
  };
}

export class Pair {
  static async open() {
    const wasm = new URL('./node_modules/lightningdevkit/liblightningjs.wasm', import.meta.url);
    await ldk.initializeWasmFromBinary(fs.readFileSync(wasm));
    const pair = new Pair();
    pair.payer = makeNode(1);
    pair.payee = makeNode(2);
    pair.#connect();
    pair.#openChannel();
    return pair;
  }

  #connect() {
    const socketOf = (number, peer) => ldk.SocketDescriptor.new_impl({
      send_data(bytes) { peer.inbox.push(Buffer.from(bytes)); return bytes.length; },
      disconnect_socket() {},
      eq(other) { return other.hash() === this.hash(); },
      hash() { return BigInt(number); },
    });
    const nowhere = ldk.Option_SocketAddressZ.constructor_none();
    this.payer.socket = socketOf(1, this.payee);
    this.payee.socket = socketOf(2, this.payer);
    taken(this.payee.peers.new_inbound_connection(this.payee.socket, nowhere), 'inbound');
    const first = taken(this.payer.peers.new_outbound_connection(
      this.payee.id, this.payer.socket, nowhere), 'outbound');
    this.payee.inbox.push(Buffer.from(first));
    this.turn();
  }

  // Delivers what the two say to each other until neither says anything more.
  turn() {
    const both = [this.payer, this.payee];
    for (let round = 0; round < ROUNDS_MAX; round++) {
      let delivered = 0;
      for (const node of both) node.peers.process_events();
      for (const node of both) {
        while (node.inbox.length) {
          taken(node.peers.read_event(node.socket, node.inbox.shift()), 'read');
          delivered++;
        }
      }
      for (const node of both) {
        if (node.manager.get_and_clear_needs_persistence()) delivered++;
        node.manager.process_pending_htlc_forwards();
      }
      if (!delivered) {
        for (const node of both) node.peers.process_events();
        if (both.every(node => !node.inbox.length)) return;
      }
    }
  }

  events(node) {
    const found = [];
    node.manager.as_EventsProvider().process_pending_events(ldk.EventHandler.new_impl({
      handle_event(event) { found.push(event); return ldk.Result_NoneReplayEventZ.constructor_ok(); },
    }));
    return found;
  }

  #openChannel() {
    taken(this.payer.manager.create_channel(
      this.payee.id, BigInt(CHANNEL_SAT), 0n, 0n, null, null), 'create_channel');
    this.turn();
    const ready = this.events(this.payer).find(
      event => event instanceof ldk.Event_FundingGenerationReady);
    const script = Buffer.from(ready.output_script);
    const head = little(2, 4), tail = little(0, 4);
    const body = Buffer.concat([
      Buffer.from([1]), Buffer.alloc(32, 7), little(0, 4), Buffer.from([0]),
      Buffer.from('ffffffff', 'hex'), Buffer.from([1]), little(CHANNEL_SAT, 8),
      Buffer.from([script.length]), script]);
    const funding = Buffer.concat([head, Buffer.from([0, 1]), body, Buffer.from([1, 1, 0xff]), tail]);
    const id = twice(Buffer.concat([head, body, tail]));
    taken(this.payer.manager.funding_transaction_generated(
      ready.temporary_channel_id, ready.counterparty_node_id, new Uint8Array(funding)), 'funding');
    this.turn();
    this.events(this.payer);
    this.events(this.payee);
    this.previous = Buffer.from(REGTEST_GENESIS, 'hex');
    this.height = 0;
    this.mine([{ id, bytes: funding }]);
    for (let block = 0; block < 6; block++) this.mine([]);
    this.events(this.payer);
    this.events(this.payee);
    if (this.payer.manager.list_usable_channels().length !== 1) throw new Error('no usable channel');
  }

  mine(transactions) {
    this.height++;
    const root = transactions.length ? transactions[0].id : Buffer.alloc(32, this.height);
    const header = Buffer.concat([
      little(1, 4), this.previous, root, little(1_700_000_000 + this.height * 600, 4),
      little(0x207fffff, 4), little(0, 4)]);
    this.previous = twice(header);
    for (const node of [this.payer, this.payee]) {
      for (const watcher of [node.monitor.as_Confirm(), node.manager.as_Confirm()]) {
        if (transactions.length) {
          const numbered = transactions.map((each, at) => ldk.TwoTuple_usizeTransactionZ.constructor_new(
            at + 1, new Uint8Array(each.bytes)));
          watcher.transactions_confirmed(new Uint8Array(header), numbered, this.height);
        }
        watcher.best_block_updated(new Uint8Array(header), this.height);
      }
    }
    this.turn();
  }

  // A BOLT11 invoice of the payee for this payment hash; the node does not know the preimage.
  invoice(hash, msat, memo, expiryS) {
    const invoice = taken(
      ldk.UtilMethods.constructor_create_invoice_from_channelmanager_with_payment_hash(
        this.payee.manager, ldk.Option_u64Z.constructor_some(BigInt(msat)), memo, expiryS,
        new Uint8Array(hash), ldk.Option_u16Z.constructor_none()), 'invoice');
    return invoice.to_str();
  }

  // The payer sends an HTLC; `decide(hash, msat)` gives the preimage, or null to fail it back.
  pay(bolt11, msat, decide) {
    const parsed = taken(ldk.Bolt11Invoice.constructor_from_str(bolt11), 'bolt11');
    const parts = taken(ldk.UtilMethods.constructor_payment_parameters_from_invoice(parsed), 'route');
    const hash = parts.get_a();
    let route = parts.get_c();
    if (msat) {
      route = ldk.RouteParameters.constructor_from_payment_params_and_value(
        route.get_payment_params(), BigInt(msat));
    }
    taken(this.payer.manager.send_payment(
      hash, parts.get_b(), new Uint8Array(crypto.randomBytes(32)), route,
      ldk.Retry.constructor_attempts(0)), 'send_payment');
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.turn();
      for (const event of this.events(this.payee)) {
        if (!(event instanceof ldk.Event_PaymentClaimable)) continue;
        const preimage = decide(Buffer.from(event.payment_hash), Number(event.amount_msat));
        if (preimage) this.payee.manager.claim_funds(new Uint8Array(preimage));
        else this.payee.manager.fail_htlc_backwards(event.payment_hash);
      }
      for (const event of this.events(this.payer)) {
        if (event instanceof ldk.Event_PaymentSent) return Buffer.from(event.payment_preimage);
        if (event instanceof ldk.Event_PaymentFailed) return null;
      }
    }
    throw new Error('the payment neither succeeded nor failed');
  }
}
