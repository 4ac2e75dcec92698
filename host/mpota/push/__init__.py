"""Updates to running boards: by REPL, network or Bluetooth, to one or to many."""
