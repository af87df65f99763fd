"""`kubectl flash`: what a server looks like, who is whose neighbour, and why, for people and for programs."""
