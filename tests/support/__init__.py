"""What tests share: boards, servers, releases, firmware. Nothing here is collected."""
