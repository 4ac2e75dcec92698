// A client of docs/PROTOCOL.md over Web Bluetooth.
const SERVICE = '6d706f74-6100-4b1e-9c53-7a0f5d2e8b46'
const CONTROL = '6d706f74-6101-4b1e-9c53-7a0f5d2e8b46'
const DATA = '6d706f74-6102-4b1e-9c53-7a0f5d2e8b46'
const HELLO = 1, BEGIN = 2, END = 3, ABORT = 4, LOOK = 5
const WELCOME = 0x81, STATUS = 0x82, AGAIN = 0x83, DONE = 0x84, ERROR = 0x85, READY = 0x86, SEEN = 0x87
const WINDOW = 4096
const MIN_PACKET = 20, MAX_PACKET = 512  // ATT_MTU 23 less 3; of any attribute
const MORE = 0x80
const CONNECT_MS = 20000, ANSWER_MS = 4000, SILENCE_MS = 12000, END_MS = 20000
const TRIES = 3, CONNECTIONS = 8

class Refused extends Error {
  constructor(code, text) {
    super(text)
    this.code = code
  }
}
class Lost extends Error {}
class Stopped extends Error {}

const sleep = ms => new Promise(done => setTimeout(done, ms))
const number = (value, size) => Uint8Array.from({length: size}, (_, n) => value / 2 ** (8 * n))
const field = (bytes, at, size) => {
  let value = 0
  while (size--) value = value * 256 + bytes[at + size]
  return value
}
const texts = bytes => new TextDecoder().decode(bytes)

// What `promise` comes to. Throws Lost if it fails, or takes longer.
async function within(ms, what, promise) {
  let timer
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Lost(`${what} takes longer than ${ms / 1000} s`)), ms)
  })
  try {
    return await Promise.race([promise, late])
  } catch (error) {
    throw error instanceof Lost ? error : new Lost(`${what}: ${error.message}`)
  } finally {
    clearTimeout(timer)
  }
}

// A connection to a board that brings messages and packets.
class Link {
  constructor(device) {
    this.device = device
    this.inbox = []
    this.parts = []
    this.size = MIN_PACKET  // until WELCOME tells what the board has agreed to: browsers do not
    this.wake = () => {}
    this.isLost = false
    this.onLost = () => {
      this.isLost = true
      this.wake()
    }
  }

  async open() {
    const {device} = this
    device.addEventListener('gattserverdisconnected', this.onLost)
    try {
      const server = await within(CONNECT_MS, 'connecting', device.gatt.connect())
      const service = await within(CONNECT_MS, 'looking for the service',
        server.getPrimaryService(SERVICE))
      this.control = await within(ANSWER_MS, 'control', service.getCharacteristic(CONTROL))
      this.data = await within(ANSWER_MS, 'data', service.getCharacteristic(DATA))
      this.control.addEventListener('characteristicvaluechanged', event => {
        const {buffer, byteOffset, byteLength} = event.target.value
        this.take(new Uint8Array(buffer, byteOffset, byteLength).slice())
      })
      await within(CONNECT_MS, 'subscribing', this.control.startNotifications())
    } catch (error) {
      this.close()
      throw error
    }
    return this
  }

  close() {
    this.device.removeEventListener('gattserverdisconnected', this.onLost)
    this.onLost()
    this.device.gatt.disconnect()
  }

  // Fragments of messages; of one that lacks any the rest is dropped.
  take(fragment) {
    if (!fragment.length) return
    const part = fragment[0] & ~MORE
    if (!part) this.parts = []
    if (part != this.parts.length) {
      this.parts = []
      return
    }
    this.parts.push(fragment.subarray(1))
    if (fragment[0] & MORE) return
    this.inbox.push(join(...this.parts))
    this.parts = []
    this.wake()
  }

  async send(message) {
    const room = this.size - 1
    for (let at = 0, part = 0; at < message.length; at += room, part++) {
      const head = part | (at + room < message.length ? MORE : 0)
      await this.write('writeValueWithResponse', this.control,
        join([head], message.subarray(at, at + room)))
    }
  }

  sendData(packet) {
    return this.write('writeValueWithoutResponse', this.data, packet)
  }

  async write(how, characteristic, value) {
    if (this.isLost) throw new Lost('the connection broke')
    // A board that asks to be paired is answered once somebody has typed six digits.
    await within(2 * CONNECT_MS, 'writing', characteristic[how](value))
  }

  // The next message; undefined if none comes in `ms`.
  async receive(ms) {
    if (!this.inbox.length && ms && !this.isLost) await new Promise(done => {
      const timer = setTimeout(done, ms)
      this.wake = () => {
        clearTimeout(timer)
        done()
      }
    })
    if (!this.inbox.length && this.isLost) throw new Lost('the connection broke')
    return this.inbox.shift()
  }
}

// From HELLO to DONE, over one link.
class Session {
  constructor(link, secret) {
    this.link = link
    this.secret = utf8(secret)
  }

  async ask(message, kind, ms = ANSWER_MS) {
    for (let tries = 0; tries < TRIES; tries++) {
      await this.link.send(message)
      let answer
      while ((answer = await this.link.receive(ms))) {
        heedError(answer)
        if (answer[0] == kind) return answer
      }
    }
    throw new Lost('the board does not answer')
  }

  async hello() {
    const nonce = crypto.getRandomValues(new Uint8Array(16))
    const welcome = await this.ask(join([HELLO, 2], nonce), WELCOME)
    if (welcome.length < 24 || welcome[1] != 2) throw new Lost('the board sent what makes no sense')
    this.flags = welcome[2]
    this.nonces = join(nonce, welcome.subarray(3, 19))
    this.link.size = Math.min(Math.max(field(welcome, 21, 2), MIN_PACKET), MAX_PACKET)
    return {flags: this.flags, chip: field(welcome, 19, 2),
      runs: texts(welcome.subarray(24, 24 + welcome[23]))}
  }

  prove(what, message) {
    if (!(this.flags & 1)) return new Uint8Array()
    if (!this.secret.length) throw new Refused('secret', 'the board asks for its secret')
    return hmac(this.secret, join(utf8('mpota2 ' + what), this.nonces, message))
  }

  // An answer without its proof. Throws Refused if that is wrong.
  proved(what, answer, size, more = []) {
    const due = this.prove(what, join(answer.subarray(0, size), more))
    if (hex(due) != hex(answer.subarray(size)))
      throw new Refused('secret', 'who answers does not know the secret: it is another board')
    return answer.subarray(0, size)
  }

  // {isConfirmed, digests}: of what runs. undefined: the board does not tell.
  async look() {
    if (!(this.flags & 8)) return undefined
    const look = [LOOK, 0, 0]
    try {
      const answer = await this.ask(join(look, this.prove('look', look)), SEEN)
      const seen = this.proved('seen', answer, answer.length - (this.flags & 1 ? 32 : 0))
      return {isConfirmed: Boolean(seen[1] & 1), digests: hex(seen.subarray(2, 66))}
    } catch (error) {
      if (error instanceof Refused && ['part', 'board', 'protocol'].includes(error.code)) return undefined
      throw error
    }
  }
}

function heedError(message) {
  if (message[0] != ERROR) return
  const end = 2 + message[1], code = texts(message.subarray(2, end))
  throw new Refused(code, texts(message.subarray(end)) || code)
}

// A file on its way, over as many links as it takes.
class Sender {
  // `job`: {secret, isStopped, onState(text), onWritten(position, size), onEnd()}
  constructor(data, judged, job) {
    this.data = data
    this.judged = judged
    this.job = job
    this.sha = sha256(data)
    this.stream = judged.endFirst ? join(data.subarray(data.length - SECTOR), data) : data
    this.position = 0  // the board has what comes before
    this.before = undefined  // what it ran: see Session.look
    this.isEnded = false
  }

  // Whether the board restarts into it now.
  async send(device) {
    for (let failures = 0; ;) {
      const before = this.position
      const link = new Link(device)
      try {
        await link.open()
        return await this.talk(new Session(link, this.job.secret))
      } catch (error) {
        if (this.job.isStopped) throw new Stopped()
        const isTemporary = error instanceof Lost || ['busy', 'timeout'].includes(error.code)
        failures = this.position > before ? 1 : failures + 1
        if (!isTemporary || failures >= CONNECTIONS) throw error
        this.job.onState(`Interrupted (${error.message}): trying again`)
        await sleep(Math.min(500 * 2 ** (failures - 1), 8000))
      } finally {
        link.close()
      }
    }
  }

  async talk(session) {
    await session.hello()
    if (this.before === undefined) this.before = await session.look() || null
    await this.begin(session)
    this.job.onState('')
    while (this.position < this.stream.length) {
      if (this.job.isStopped) {
        await session.link.send(join([ABORT], session.prove('abort', [ABORT])))
        throw new Stopped()
      }
      const canSend = this.next < this.limit
      const message = await session.link.receive(canSend ? 0 : SILENCE_MS)
      if (message) this.heed(message)
      else if (canSend) await this.sendPacket(session.link)
      else throw new Lost('the board is silent')
    }
    this.isEnded = true
    this.job.onEnd()
    const end = [END, 1]
    const proof = session.prove('end', join(end, this.sha))
    const done = await session.ask(join(end, proof), DONE, END_MS)
    return Boolean(session.proved('done', done, 2, this.sha)[1] & 1)
  }

  async begin(session) {
    const {judged, data} = this
    const version = utf8(judged.version).subarray(0, 64)
    const begin = join([BEGIN, judged.endFirst ? 3 : 1], number(data.length, 4), this.sha,
      number(judged.chip, 2), [version.length], version)
    const ready = await session.ask(join(begin, session.prove('begin', begin)), READY, END_MS)
    this.heed(session.proved('ready', ready, 7))
  }

  heed(message) {
    heedError(message)
    if (![STATUS, AGAIN, READY].includes(message[0]) || message.length != 7)
      throw new Lost('the board sent what makes no sense')
    this.position = field(message, 1, 4)
    this.limit = this.position + field(message, 5, 2)
    if (message[0] != STATUS) this.next = this.position
    this.job.onWritten(this.position, this.stream.length)
  }

  async sendPacket(link) {
    const {stream, next, limit} = this
    const start = next - next % WINDOW, end = Math.min(start + WINDOW, stream.length)
    const room = link.size - 2
    // The packet that ends a window has its CRC behind one byte at least.
    const isLast = end - next + 4 <= room && end <= limit
    const stop = isLast ? end : Math.min(next + room, end - 1, limit)
    await link.sendData(join(number(next & 0xffff, 2), stream.subarray(next, stop),
      isLast ? number(crc32(stream.subarray(start, end)), 4) : []))
    this.next = stop
  }
}

// What a board says: {flags, chip, runs, seen}; `seen` is undefined without the secret it asks for.
async function meet(device, secret) {
  const link = new Link(device)
  try {
    const session = new Session(await link.open(), secret)
    const board = await session.hello()
    if (!(board.flags & 1) || secret) board.seen = await session.look()
    return board
  } finally {
    link.close()
  }
}
