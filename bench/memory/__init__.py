"""Does a worker's memory stay flat?"""
