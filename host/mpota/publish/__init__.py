"""Channels: releases put into a place, and what boards are told of them; pages to install from."""
