// The laptop's side: Bluetooth with the pipe's values, or a serial port over Bluetooth with plain bytes.

import { streamed } from "./gateway.js";
import { makePipe, readInfo } from "./pipe.js";

const QUEUE_HIGH = 16384, CLOSE_S = 5, SEEK_S = 30;
const uuid = (number) => `6c55000${number}-36dd-42eb-b94f-13d310764f09`;
const [SERVICE, RX, TX, INFO, SERIAL, WAITING] = [1, 2, 3, 4, 5, 6].map(uuid);
const now = () => performance.now() / 1000;
const bluetooth = (device) => ({ device, name: device.name || "Laptop", open: openBluetooth });

export const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });

export async function remembered() { // where the browser tells
  return (await navigator.bluetooth?.getDevices?.() ?? []).map(bluetooth);
}

export async function choose() {
  const wanted = { filters: [{ services: [WAITING] }], optionalServices: [SERVICE] };
  return bluetooth(await navigator.bluetooth.requestDevice(wanted));
}

export async function chooseSerial() {
  const wanted = { allowedBluetoothServiceClassIds: [SERIAL], filters: [{ bluetoothServiceClassId: SERIAL }] };
  return { device: await navigator.serial.requestPort(wanted), name: "Laptop, by serial port", open: openSerial };
}

async function openSerial(port) {
  await port.open({ baudRate: 115200 });
  return streamed(port, async (reader, writer) => {
    await Promise.race([Promise.allSettled([writer.close(), reader.cancel()]), pause(CLOSE_S)]);
    reader.releaseLock();
    writer.releaseLock();
    await port.close();
  });
}

// Connects, unless it is connected, and begins a pipe.
async function openBluetooth(device, again) {
  if (again && !device.gatt.connected) await heard(device);
  const server = await device.gatt.connect();
  try {
    const service = await server.getPrimaryService(SERVICE);
    const rx = await service.getCharacteristic(RX), tx = await service.getCharacteristic(TX);
    const said = await (await service.getCharacteristic(INFO)).readValue();
    const { role, size, credit } = readInfo(new Uint8Array(said.buffer));
    if (role !== 2) throw new Error("this is another hop");
    // One that grants a single value says itself when it is ready for more.
    const pipe = makePipe(size, credit > 1 ? credit : 0, 0, now());
    const link = overPipe(pipe, (value) => rx.writeValueWithoutResponse(value), (clean) =>
      (clean ? tx.stopNotifications() : server.disconnect()));
    tx.oncharacteristicvaluechanged = () => link.take(new Uint8Array(tx.value.buffer));
    device.ongattserverdisconnected = link.fail;
    await tx.startNotifications();
    link.run();
    return link;
  } catch (error) {
    server.disconnect();
    throw error;
  }
}

// Until it advertises, or it is time to try all the same.
async function heard(device) {
  const stop = new AbortController();
  await Promise.race([pause(SEEK_S), new Promise((done) => {
    device.onadvertisementreceived = done;
    device.watchAdvertisements?.(stop).catch(done) ?? done();
  })]);
  stop.abort();
}

function overPipe(pipe, write, leave) {
  let over = false, bell = Promise.withResolvers(); // rings at every change
  function ring() {
    bell.resolve();
    bell = Promise.withResolvers();
  }
  function fail() {
    over = true;
    ring();
  }
  return {
    fail,
    take(value) {
      try {
        if (!over) pipe.take(value, now());
        ring();
      } catch {
        fail();
      }
    },
    async run() { // writes what the pipe has to say as fast as the radio takes it
      try {
        while (!over) {
          const value = pipe.next(now());
          if (value) await write(value);
          else await Promise.race([bell.promise, pause(Math.min(60, pipe.deadline() - now()))]);
          if (value) ring();
          if (now() >= pipe.deadline()) pipe.tick(now());
        }
      } catch {
        fail();
      }
    },
    async receive() {
      let data;
      while (!(data = pipe.read()).length && !pipe.ended() && !over) await bell.promise;
      ring();
      return data.length ? data : "";
    },
    async send(data) {
      for (let at = 0; at < data.length && !over; at += QUEUE_HIGH) {
        pipe.send(data.subarray(at, at + QUEUE_HIGH));
        ring();
        while (pipe.buffered() > QUEUE_HIGH / 2 && !over) await bell.promise;
      }
    },
    async close(reason = 0) {
      pipe.end(reason);
      ring();
      pause(CLOSE_S).then(fail);
      while (!over && !pipe.finished()) await bell.promise;
      await leave(!over);
      fail();
    },
  };
}
