// The laptop's side: Bluetooth with the pipe's values, or a serial port over Bluetooth with plain bytes.

import { streamed } from "./gateway.js";
import { makePipe, readInfo } from "./pipe.js";

const QUEUE_HIGH = 16384, CLOSE_MS = 5000, SEEK_MS = 30000, TICK_MS = 250;
const [SERVICE, RX, TX, INFO, SERIAL, WAITING] = [1, 2, 3, 4, 5, 6].map((n) => `6c55000${n}-36dd-42eb-b94f-13d310764f09`);
const now = () => performance.now() / 1000;
const bluetooth = (device) => ({ device, name: device.name || "Laptop", open: openBluetooth });

export async function remembered() {
	return (await navigator.bluetooth?.getDevices?.() ?? []).map(bluetooth);
}

export async function choose() {
	return bluetooth(await navigator.bluetooth.requestDevice({
		filters: [{ services: [WAITING] }], optionalServices: [SERVICE],
	}));
}

export async function chooseSerial() {
	const wanted = { allowedBluetoothServiceClassIds: [SERIAL], filters: [{ bluetoothServiceClassId: SERIAL }] };
	return { device: await navigator.serial.requestPort(wanted), name: "Laptop", open: openSerial };
}

async function openSerial(port) {
	await port.open({ baudRate: 115200 });
	return streamed(port, async (reader, writer) => {
		await Promise.allSettled([reader.cancel(), writer.abort()]);
		reader.releaseLock();
		writer.releaseLock();
		await port.close().catch(() => {});
	});
}

async function openBluetooth(device) {
	if (!device.gatt.connected && device.watchAdvertisements) await heard(device);
	await device.gatt.connect();
	const service = await device.gatt.getPrimaryService(SERVICE);
	const rx = await service.getCharacteristic(RX), tx = await service.getCharacteristic(TX);
	const { buffer } = await (await service.getCharacteristic(INFO)).readValue();
	const { role, size, credit } = readInfo(new Uint8Array(buffer));
	if (role !== 2) throw new Error("a hop");
	// One that grants a single value says when it is ready for more.
	const link = overPipe(makePipe(size, credit > 1 ? credit : 0, 0, now()), (value) => rx.writeValueWithoutResponse(value),
		async (clean) => (clean ? tx.stopNotifications() : device.gatt.disconnect()));
	tx.oncharacteristicvaluechanged = () => link.take(new Uint8Array(tx.value.buffer));
	device.ongattserverdisconnected = link.fail;
	await tx.startNotifications();
	link.run();
	return link;
}

// Until it advertises, or it is time to try all the same.
const heard = (device) => new Promise((done) => {
	device.onadvertisementreceived = done;
	device.watchAdvertisements({ signal: AbortSignal.timeout(SEEK_MS) }).catch(done);
	setTimeout(done, SEEK_MS);
});

function overPipe(pipe, write, leave) {
	let over = false, bell = Promise.withResolvers();
	function change(work) {
		try {
			work?.();
		} catch {
			over = true;
		}
		bell.resolve();
		bell = Promise.withResolvers();
	}
	const fail = () => change(() => { over = true; });
	return {
		fail,
		take: (value) => change(() => over || pipe.take(value, now())),
		async run() {
			const clock = setInterval(() => change(() => pipe.tick(now())), TICK_MS);
			while (!over) {
				const value = pipe.next(now());
				await (value ? write(value).then(change, fail) : bell.promise);
			}
			clearInterval(clock);
		},
		async receive() {
			let data;
			while (!(data = pipe.read()).length && !pipe.ended() && !over) await bell.promise;
			change();
			return data;
		},
		async send(data) {
			for (let at = 0; at < data.length; at += QUEUE_HIGH) {
				change(() => pipe.send(data.subarray(at, at + QUEUE_HIGH)));
				while (pipe.buffered() > QUEUE_HIGH / 2 && !over) await bell.promise;
			}
		},
		async close(reason) {
			change(() => pipe.end(reason));
			setTimeout(fail, CLOSE_MS);
			while (!over && !pipe.finished()) await bell.promise;
			const clean = !over;
			fail();
			await leave(clean).catch(() => {});
		},
	};
}
