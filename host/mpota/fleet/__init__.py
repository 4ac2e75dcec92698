"""Many boards in one table, as servers, brokers and plans tell of them."""
