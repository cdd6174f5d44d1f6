// The doctor's Matrix client, running in the browser. It reports what it decrypts through
// `window.report`, which doctor.mjs provides, and is steered through `window.doctor`.

import {
  ClientEvent,
  createClient,
  Filter,
  MatrixEvent,
  MatrixEventEvent,
  RoomEvent,
} from "matrix-js-sdk";
import {
  CryptoEvent,
  EventShieldColour,
  EventShieldReason,
  OnlySignedDevicesIsolationMode,
} from "matrix-js-sdk/lib/crypto-api/index.js";

import { answer, call, followCalls, hangUp, media } from "./calls.js";
import { showEvent, showFailure, showUser } from "./view.js";

const TIMELINE_LIMIT = 100; // Synapse gives no more than this in one sync

let client;
const reported = new Set();
// The newest event of each encrypted state slot, by room and outer state key.
const newestState = new Map();
const failedBefore = new WeakSet();
// Events refused for their sender's device, by event id.
const refused = new Map();
const REFUSALS = ["UNSIGNED_SENDER_DEVICE", "UNKNOWN_SENDER_DEVICE"];

const slot = (event) => `${event.getRoomId()} ${event.getWireStateKey()}`;

async function logIn({ homeserver_url: baseUrl, user, password, relay_only: forceTURN }) {
  const { user_id, device_id, access_token } = await createClient({ baseUrl }).loginRequest({
    type: "m.login.password",
    identifier: { type: "m.id.user", user },
    password,
    initial_device_display_name: "FAJMA test client",
  });
  return createClient({
    baseUrl,
    userId: user_id,
    deviceId: device_id,
    accessToken: access_token,
    enableEncryptedStateEvents: true,
    forceTURN,
  });
}

async function crossSign(crypto, { password }) {
  const user = client.getUserId();
  // The sdk would replace an identity whose keys it does not hold, and cut off the other devices.
  if (await crypto.userHasCrossSigningKeys(user, true)) {
    throw new Error(`${user} already has a cross-signing identity: use a fresh account`);
  }
  await crypto.bootstrapCrossSigning({
    authUploadDeviceSigningKeys: (request) =>
      request({ type: "m.login.password", identifier: { type: "m.id.user", user }, password }),
  });
}

async function accept(room) {
  try {
    await client.joinRoom(room.roomId);
  } catch (error) {
    console.error(`cannot join ${room.roomId}: ${error.message}`);
  }
}

// A server could present one encrypted state as another; only the inner key is authentic. The
// sdk's Rust half refuses it too (as UNKNOWN_ERROR), but nothing promises that it always will.
function isMisplaced(event) {
  return event.isState() && event.getWireStateKey() !== `${event.getType()}:${event.getStateKey()}`;
}

// A state that was still encrypted when js-sdk filed it (first sync, late key) is under the
// wrong type: file it again, unless a newer one has taken its place.
function fileState(room, event) {
  const isFiled = room.currentState.getStateEvents(event.getType(), event.getStateKey()) === event;
  if (!isFiled && newestState.get(slot(event)) === event.getId()) {
    room.currentState.setStateEvents([event]);
  }
}

async function shieldOf(event) {
  const info = await client.getCrypto().getEncryptionInfoForEvent(event);
  if (!info) return null;
  const reason = info.shieldReason === null ? null : EventShieldReason[info.shieldReason];
  return { colour: EventShieldColour[info.shieldColour], reason };
}

function reportFailure(room, event, reason) {
  const key = `${event.getId()} ${reason}`;
  if (reported.has(key)) return;
  reported.add(key);
  const failure = {
    room_id: room.roomId,
    event_id: event.getId(),
    state_key: event.getWireStateKey() ?? null,
    sender: event.getSender(),
    reason,
  };
  showFailure(room, failure);
  window.report({ failure });
}

async function reportEvent(room, event) {
  if (reported.has(event.getId())) return;
  reported.add(event.getId());
  const encrypted = event.isEncrypted();
  const shield = encrypted ? await shieldOf(event) : null;
  showEvent(room, event);
  window.report({
    event: {
      room_id: room.roomId,
      event_id: event.getId(),
      type: event.getType(),
      state_key: event.getStateKey() ?? null,
      sender: event.getSender(),
      content: event.getContent(),
      origin_server_ts: event.getTs(),
      encrypted,
      shield,
    },
  });
}

async function settle(event) {
  const room = client.getRoom(event.getRoomId());
  if (!room || event.isRedacted()) return;
  if (event.isDecryptionFailure()) {
    const reason = event.decryptionFailureReason;
    reportFailure(room, event, reason);
    if (REFUSALS.includes(reason) && !refused.has(event.getId())) {
      refused.set(event.getId(), event);
      await decryptAgain(event); // the news may have come during the attempt
    }
    return;
  }
  refused.delete(event.getId());
  if (event.isEncrypted()) {
    if (isMisplaced(event)) {
      reportFailure(room, event, "STATE_KEY_MISMATCH");
      return;
    }
    if (event.isState()) fileState(room, event);
  }
  await reportEvent(room, event);
}

// In the two cases below the sdk cannot decrypt the same object again, and Element shows the event
// only after a reload; a fresh copy decrypts.
async function decryptAgain(event) {
  const copy = new MatrixEvent(event.event);
  await client.decryptEventIfNeeded(copy);
  await settle(copy);
}

async function onDecrypted(event) {
  // A state whose key arrived late: the sdk tries again, but js-sdk 43 has forgotten the state
  // key of an event that failed, so its own attempt must fail.
  if (event.isDecryptionFailure() && event.isState() && failedBefore.has(event)) {
    await decryptAgain(event);
    return;
  }
  if (event.isDecryptionFailure()) failedBefore.add(event);
  await settle(event);
}

// Just after joining, an event may overtake the answer that shows its sender's device as signed.
async function onDevicesUpdated(users) {
  for (const event of [...refused.values()]) {
    if (users.includes(event.getSender())) await decryptAgain(event);
  }
}

async function onSynced(event) {
  // Without an id it is a typing notice, account data, or the preview of an invitation.
  if (!event.getId() || client.getRoom(event.getRoomId())?.getMyMembership() !== "join") return;
  if (event.isEncrypted()) {
    if (event.isState()) newestState.set(slot(event), event.getId());
    await client.decryptEventIfNeeded(event);
  }
  await settle(event);
}

function firstSync() {
  return new Promise((resolve, reject) => {
    client.on(ClientEvent.Sync, (state, _before, data) => {
      if (state === "PREPARED") resolve();
      if (state === "ERROR" && !client.isInitialSyncComplete()) reject(data.error);
    });
  });
}

async function start(settings) {
  client = await logIn(settings);
  await client.initRustCrypto({ useIndexedDB: false });
  const crypto = client.getCrypto();
  if (settings.cross_sign) {
    crypto.setDeviceIsolationMode(new OnlySignedDevicesIsolationMode());
    // Before the first sync, so that nobody ever meets this device unsigned.
    await crossSign(crypto, settings);
  }

  client.on(ClientEvent.Event, onSynced);
  client.on(MatrixEventEvent.Decrypted, onDecrypted);
  client.on(CryptoEvent.DevicesUpdated, onDevicesUpdated);
  client.on(RoomEvent.MyMembership, (room, membership) => {
    if (membership === "invite") accept(room);
  });

  followCalls(client);

  const filter = Filter.fromJson(client.getUserId(), "", {
    room: { timeline: { limit: TIMELINE_LIMIT } },
  });
  const synced = firstSync();
  await client.startClient({ filter, initialSyncLimit: TIMELINE_LIMIT, disablePresence: true });
  await synced;
  showUser(client.getUserId());
  return { user: client.getUserId(), device: client.getDeviceId() };
}

// The room is usable once the sync has shown its encryption and whom it is for: before that the
// sdk would send in clear, or leave the invited without the key.
function isComplete(room, invited) {
  return (
    room?.getMyMembership() === "join" &&
    room.hasEncryptionStateEvent() &&
    invited.every((user) => room.getMember(user) !== null)
  );
}

async function create(options) {
  const { room_id } = await client.createRoom(options);
  while (!isComplete(client.getRoom(room_id), options.invite)) {
    await new Promise((resolve) => client.once(ClientEvent.Event, resolve));
  }
  return { room_id };
}

// `state_key` present: a state event, encrypted where the room asks for it.
function send({ room_id, type, content, state_key }) {
  return state_key === undefined
    ? client.sendEvent(room_id, type, content)
    : client.sendStateEvent(room_id, type, content, state_key);
}

window.doctor = { start, create, send, call, answer, media, hangUp };
