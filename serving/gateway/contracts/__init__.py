"""APIs of other servers, for their clients: thin layers around the same path as /classify."""
