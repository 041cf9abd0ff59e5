"""Training of video transformers: conversion and finetuning of the worlds that they are."""
