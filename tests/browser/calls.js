// Calls of two: placed, taken and looked into, as Element does it with the same library.

import { createNewMatrixCall, CallEvent } from "matrix-js-sdk/lib/webrtc/call.js";
import { CallEventHandlerEvent } from "matrix-js-sdk/lib/webrtc/callEventHandler.js";

const LOOK_EVERY_MS = 100; // a counter tells nobody that it has grown

let client;
const current = new Map(); // by room

function follow(call) {
  current.set(call.roomId, call);
  const tell = (reason = null) =>
    window.report({ call: { room_id: call.roomId, state: call.state, reason } });
  call.on(CallEvent.State, (state) => state !== "ended" && tell());
  call.on(CallEvent.Hangup, () => tell(call.hangupReason ?? null));
  call.on(CallEvent.Error, (error) => console.error(`call: ${error.message}`));
  return tell;
}

export function followCalls(ours) {
  client = ours;
  client.on(CallEventHandlerEvent.Incoming, (call) => follow(call)());
}

function callIn(room_id) {
  const call = current.get(room_id);
  if (!call) throw new Error("there is no call in this room");
  return call;
}

export async function call({ room_id, video }) {
  const placed = createNewMatrixCall(client, room_id);
  follow(placed);
  await (video ? placed.placeVideoCall() : placed.placeVoiceCall());
  return {};
}

export async function answer({ room_id }) {
  await callIn(room_id).answer();
  return {};
}

export async function hangUp({ room_id }) {
  callIn(room_id).hangup("user_hangup", false);
  return {};
}

async function look(call) {
  const stats = new Map((await call.getCurrentCallStats()).map((one) => [one.id, one]));
  const ofType = (type) => [...stats.values()].filter((one) => one.type === type);
  const bytes = (type, key) => Object.fromEntries(ofType(type).map((one) => [one.kind, one[key]]));
  const transport = ofType("transport")[0];
  const pair = stats.get(transport?.selectedCandidatePairId);
  return {
    sent: bytes("outbound-rtp", "bytesSent"),
    received: bytes("inbound-rtp", "bytesReceived"),
    local: stats.get(pair?.localCandidateId)?.candidateType,
    remote: stats.get(pair?.remoteCandidateId)?.candidateType,
    codecs: ofType("outbound-rtp").map((one) => stats.get(one.codecId)?.mimeType ?? ""),
  };
}

export async function media({ room_id, bytes }) {
  const call = callIn(room_id);
  for (;;) {
    const found = await look(call);
    const counters = [...Object.values(found.sent), ...Object.values(found.received)];
    const flows = counters.length >= 2 && counters.every((one) => one >= bytes);
    if (flows && found.local) return found;
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}
