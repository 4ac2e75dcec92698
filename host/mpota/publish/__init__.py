"""Channels: releases put into a directory or a bucket, and what boards are told of them."""
