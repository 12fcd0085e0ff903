(S'l2l-was-here'
ios
mkdir
.