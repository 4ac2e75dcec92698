// The page: what it shows, and what it does when somebody asks for it.
HINTS.busy = 'Somebody else is sending an update to this board: try again when that is over.'
HINTS.protocol = 'A board with ota 0.1 speaks an older protocol: mpota ble push updates it.'
const MAX_SIZE = 64 << 20  // of what is fetched
// A board goes on for a moment before it restarts; so long after DONE it has done so, even if it was
// back before anybody looked.
const RESTART_MS = 2000, RESTARTED_MS = 10000
const AWAY_MS = 60000, LOOK_MS = 1000, TRIAL_MS = 300000

let device = null, board = null  // what it said last

// --- whether this browser can

async function checkBrowser() {
  let text = ''
  if (!isSecureContext) text = 'Browsers give access to Bluetooth only to pages over https, or on this computer itself.'
  else if (!navigator.bluetooth) text = 'This browser has no Web Bluetooth. ' + (
    /iP(hone|ad|od)/.test(navigator.userAgent) ? 'No browser of iPhone and iPad has: use a computer or an Android phone.' :
      /Linux/.test(navigator.userAgent) && /Chrom/.test(navigator.userAgent) ? 'Switch it on at chrome://flags/#enable-web-bluetooth, and restart the browser.' :
        'Open this page in Chrome, Edge or Opera, on a computer or an Android phone.')
  else if (!await navigator.bluetooth.getAvailability()) text = 'This computer has no Bluetooth that is on: switch it on, and reload the page.'
  at('missing').textContent = text
  show('missing', text)
  at('browsers').open = Boolean(text)
  at('pick').disabled = !navigator.bluetooth
}

// --- the board

async function pick() {
  show('outcome', false)
  try {
    device = await navigator.bluetooth.requestDevice({filters: [{services: [SERVICE]}]})
  } catch (error) {
    at('found').textContent = error.name == 'NotFoundError' ? 'No board was chosen.' : error.message
    return
  }
  at('found').textContent = 'Connecting…'
  try {
    board = await meet(device, at('secret').value)
    at('found').textContent = ''
  } catch (error) {
    board = null
    at('found').textContent = `${device.name || 'The board'} cannot be reached: ${error.message}. ${HINTS[error.code] || 'Come closer, see that its program waits for updates, and choose it again.'}`
  }
  showBoard()
}

function showBoard() {
  show('runs', board)
  if (board) {
    const name = device.name || 'Board'
    document.title = `${name}: update by Bluetooth`
    at('name').textContent = name
    at('kind').textContent = chipText(board.chip)
    const rows = [['Runs', board.runs], ['Takes', board.flags & 2 ? 'what its keys have signed' :
      board.flags & 1 ? 'updates by who knows its secret' : 'updates']]
    list(at('runs'), rows)
    at('pick').textContent = 'Another board'
    at('pick').className = 'plain'
    const {seen} = board
    at('state').textContent = !seen ? '' : seen.isConfirmed ? 'Confirmed' : 'On trial'
    at('state').className = 'badge ' + (seen && seen.isConfirmed ? 'good' : 'wait')
  }
  show('state', Boolean(board && board.seen))
  show('ask', board && board.flags & 1)
  rejudge()
}

// --- what is to be sent

function rejudge() {
  if (data) {
    judged = judge(data, board ? {...board, chip_name: chipText(board.chip), room: Infinity} :
      {flags: 0, room: Infinity})
    showJudged(board)
  }
  offer()
}

function offer() {
  at('go').disabled = !board || !judged || judged.problems.length > 0
  at('go').textContent = judged && judged.version ? `Update to ${judged.version}` : 'Update'
}

function choose(name, content) {
  show('outcome', false)
  data = content
  at('drop-text').textContent = name
  at('hint').textContent = `${sizeText(data.length)}; choose again for another one`
  rejudge()
}

function chooseNothing(text) {
  data = judged = null
  at('judged').replaceChildren(make('div', 'box bad', make('p', '', text)))
  offer()
}

async function chooseFile(file) {
  if (!file || job) return
  try {
    choose(file.name, new Uint8Array(await file.arrayBuffer()))
  } catch (error) {
    chooseNothing(`The file cannot be read: ${error.message}`)
  }
}

async function fetchFile() {
  const {value} = at('url')
  if (!value || !at('url').reportValidity() || job) return
  at('fetch').disabled = true
  say('Fetching')
  try {
    const answer = await fetch(value)
    if (!answer.ok) throw Error(`the server says ${answer.status} ${answer.statusText}`)
    const pieces = []
    let size = 0
    for (const reader = answer.body.getReader(); ;) {
      const {done, value: piece} = await reader.read()
      if (done) break
      size += piece.length
      if (size > MAX_SIZE) {
        reader.cancel()
        throw Error(`it is larger than ${sizeText(MAX_SIZE)}`)
      }
      pieces.push(piece)
      at('hint').textContent = `${sizeText(size)} fetched`
    }
    choose(new URL(answer.url).pathname.split('/').pop() || 'file', join(...pieces))
  } catch (error) {
    const isBlocked = error instanceof TypeError
    chooseNothing(`It cannot be fetched: ${error.message}.` + (isBlocked ?
      ' Either there is no such server, or it does not let other pages read it (CORS): download the file, and choose it here.' : ''))
  }
  at('fetch').disabled = false
  say('')
}

// --- on the way

function begin() {
  job = {
    secret: at('secret').value, isStopped: false, started: 0, first: null,
    onState: text => { at('doing').textContent = text || job.doing },
    onWritten,
    onEnd: showAllWritten,
  }
  for (const id of ['choose', 'judged', 'ask', 'go', 'outcome', 'pick']) show(id, false)
  for (const id of ['going', 'stop']) show(id)
  step('Connecting to the board')
}

const timeText = seconds => seconds < 90 ? `${seconds} s` : `${Math.ceil(seconds / 60)} min`

function onWritten(position, size) {
  // A window is written once it is whole and its CRC is right.
  showWritten(position, size, position < size ? position - position % WINDOW : size, timeText)
}

async function start(event) {
  event.preventDefault()
  if (job || at('go').disabled) return
  if (board.flags & 1 && !at('secret').value) {
    at('secret').focus()
    return
  }
  begin()
  const lock = await keepAwake()
  let sender
  try {
    // A turn of the loop, so that the page shows what comes: a large file takes a while to digest.
    await sleep(20)
    sender = new Sender(data, judged, job)
    const restarts = await sender.send(device)
    if (restarts) await follow(sender)
    else end('good', 'Done', 'The board has taken it, and needs no restart.')
  } catch (error) {
    if (sender && sender.isEnded && error instanceof Lost) end('wait', 'The board has all of it, and did not say that it switched', error.message, 'Choose the board again to see what it runs. Sending the file again does no harm.')
    else endBy(error, error instanceof Lost && 'Come closer, and send it again: it goes on where it was.')
  }
  if (lock) lock.release()
  job = null
  for (const id of ['choose', 'judged', 'go', 'pick']) show(id)
  showBoard()
  at('outcome').focus()
}

// A phone that goes to sleep breaks the link.
async function keepAwake() {
  try {
    return await navigator.wakeLock.request('screen')
  } catch {
    return null
  }
}

// --- what has come of it

async function follow(sender) {
  show('stop', false)
  step('All is well: the board restarts into it')
  const {before} = sender, started = Date.now()
  let wasAway = false, hasRun = false
  await sleep(RESTART_MS)  // that a board goes down under a link shows late
  for (;;) {
    const passed = Date.now() - started
    if (passed > (hasRun ? TRIAL_MS : AWAY_MS)) break
    await sleep(LOOK_MS)
    let now
    try {
      now = await meet(device, job.secret)
    } catch (error) {
      if (!(error instanceof Lost)) throw error
      wasAway = true
      job.onState('The board is away: it restarts')
      continue
    }
    if (!now.seen || !before) {  // it tells no more than that
      if (!wasAway && passed < RESTARTED_MS) continue
      board = now
      return end('good', `The board is back, and runs ${now.runs}`)
    }
    const runs = now.seen.digests != before.digests
    if (runs && now.seen.isConfirmed) {
      board = now
      return end('good', 'The new version runs and is confirmed', `${now.runs}.`)
    }
    if (!runs && (hasRun || wasAway || passed > RESTARTED_MS)) {
      board = now
      return end('bad', 'The board runs what it ran before', 'The new version did not come up, or nobody confirmed it in its first boot; or it was the same, or the program on the board has not restarted yet.')
    }
    if (runs && !hasRun) {
      hasRun = true
      board = now
      showBoard()
      step('The new version runs: its program has to confirm it')
    }
  }
  if (hasRun) end('wait', 'The new version runs, and is not confirmed yet', 'Without that the next restart brings back the version before. Choose the board again to see.')
  else end('wait', 'The board has switched, and is not in reach', 'It takes updates again when its program opens Bluetooth for them. Choose it then to see what it runs.')
}

// --- wiring

at('pick').addEventListener('click', pick)
wire(chooseFile, start)
at('fetch').addEventListener('click', fetchFile)
at('url').addEventListener('keydown', event => {
  if (event.key != 'Enter') return
  event.preventDefault()
  fetchFile()
})
addEventListener('beforeunload', event => {
  if (job && !job.isStopped) event.preventDefault()
})
const asked = new URLSearchParams(location.search).get('url')
if (asked) {
  at('url').value = asked
  at('from-url').open = true
}
checkBrowser()
