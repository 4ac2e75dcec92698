"""Changes to a live board's flash: planned, shown, carried out, proved, taken back."""
