"""What does the service cost a trial?"""
